"""The command line, in this process: what it prints and the exit status it gives."""

import argparse
import errno
import importlib
import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deepclust_ext
from deepclust_ext import commands
from deepclust_ext.__main__ import _words, main, make_parser
from deepclust_ext.commands import demo
from deepclust_ext.commands._installation import collect_info, format_info
from deepclust_ext.ops._checks import LARGEST_SEED


def test_info_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out == format_info(collect_info()) + "\n"


def test_info_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == collect_info()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == deepclust_ext.__version__ + "\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["cluster"],
        ["info", "--colour"],
        ["info", "all"],
        ["export", "run", "--json", "photos"],
        ["info", "--json=yes"],
        ["inform"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    said = capsys.readouterr().err
    assert said.startswith("deepclust-ext: ")
    assert re.search(r"; see deepclust-ext( \w+)? --help\n\Z", said)
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--colour", "photos"], "unrecognized arguments: --colour"),
        (["cluster", "run", "photos", "--colour", "red"], "unrecognized arguments: --colour"),
        (["report", "run", "--colour", "red"], "unrecognized arguments: --colour"),
        (["info", "all", "facts"], "unrecognized arguments: all facts"),
        (["cluster"], "the following arguments are required: RUN"),
        (["embed", "--json"], "the following arguments are required: RUN"),
        (["train", "--threads", "-1", "photos"], "argument --threads: expected at least 1, got -1"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_else(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err == f"deepclust-ext: {message}; see deepclust-ext {arguments[0]} --help\n"


@pytest.mark.parametrize(
    ("arguments", "message", "said"),
    [
        (["train", "photos", "--clusters", "9"], "num_clusters: expected 1 to 3", "--clusters: expected 1 to 3"),
        (["train", "photos", "--clusters=9"], "num_clusters: expected 1 to 3", "--clusters: expected 1 to 3"),
        (["train", "photos", "--recipe", "x"], "num_clusters: expected 1 to 3", "num_clusters: expected 1 to 3"),
        (["train", "photos", "--backbone", "no:way"], "backbone.name: expected", "--backbone: expected"),
        (["train", "photos"], "score_every: expected none", "--score-every: expected none"),
        (["train", "photos"], "run: expected run.json", "--out: expected run.json"),
        (["train", "photos"], "images: expected at least 2", "DATA: expected at least 2"),
        (["cluster", "mine"], "run: expected a folder", "RUN: expected a folder"),
        (["recipes", "none"], "recipe: expected one of", "NAME: expected one of"),
        (["data", "photos"], "data: expected a folder", "DATA: expected a folder"),
        (["export", "mine"], "backbone: expected", "backbone: expected"),  # no option of this command
        (["data", "images"], "images: expected a folder", "images: expected a folder"),  # what it is called
        (["train", "photos", "--set", "batch_size=0"], "batch_size: expected 2", "--set batch_size: expected 2"),
        (["train", "photos", "--set", "model.a=0"], "a: expected 1", "--set model.a: expected 1"),
        (["train", "photos", "--set", "views=[]"], "views.1.size: expected 1", "--set views.1.size: expected 1"),
        (["train", "photos", "--set", "model.a=0"], "model.b: expected 1", "model.b: expected 1"),
        (["train", "photos", "--recipe", "x"], "mean: expected 1 number, got 3", "mean: expected 1 number, got 3"),
        (["info"], "loading:\n\tsize mismatch\n", "loading: size mismatch"),
    ],
)
def test_a_message_names_the_option_in_one_line(
    arguments: list[str], message: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise ValueError(message)

    monkeypatch.setattr(importlib.import_module(f"{commands.__name__}.{arguments[0]}"), "run", run)
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"deepclust-ext: {said}\n"


@pytest.mark.parametrize(
    ("command", "before"), [("cluster", ["run"]), ("train", ["photos"]), ("data", ["photos"]), ("embed", ["run", "a"])]
)
def test_data_may_follow_behind_options(command: str, before: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def run(arguments: argparse.Namespace) -> int:
        given.append(arguments.data)
        return 0

    monkeypatch.setattr(importlib.import_module(f"{commands.__name__}.{command}"), "run", run)
    assert main([command, *before, "--debug", "new", "more"]) == 0
    assert given == [[*(before[1:] if before[0] == "run" else before), "new", "more"]]
    with pytest.raises(SystemExit, match="2"):
        main([command, *before, "--debug", "new", "--more"])


NAMES = [found.name for found in pkgutil.iter_modules(commands.__path__) if not found.name.startswith("_")]


def test_every_file_is_a_command_and_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"demo", "info"} <= set(NAMES)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    for name in NAMES:
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert f"usage: deepclust-ext {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_command_is_under_80_lines(name: str) -> None:
    source = Path(commands.__path__[0]) / f"{name}.py"
    assert len(source.read_text().splitlines()) < 80


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_can_complete_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", shell])
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert "--score-every" in printed


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["tra"], "train"),
        (["train", "pho"], "photos"),
        (["cluster", "pho"], "photos"),
        (["train", "photos", "--out", "pho"], "photos"),
        (["cluster", "photos", "--mode", "sy"], "symlink"),
    ],
)
def test_bash_completes_commands_choices_and_files(
    words: list[str], completed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", "bash"])
    before, last = ["deepclust-ext", *words][-2:]
    asked = f"COMP_WORDS=(deepclust-ext {' '.join(words)}); COMP_CWORD={len(words)}"
    script = f"{capsys.readouterr().out}\n{asked}\n_shtab_deepclust_ext deepclust-ext {last} {before}\n"
    done = subprocess.run(
        ["bash", "-c", script + 'echo "${COMPREPLY[@]}"'], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{completed}\n"


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"Example:\n  deepclust-ext {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_examples_can_be_followed_one_after_the_other(name: str) -> None:
    example = str(importlib.import_module(f"{commands.__name__}.{name}").__doc__).partition("Example:\n")[2]
    written = []
    for line in example.splitlines():
        call = re.split("(?:deepclust-ext|-m deepclust_ext) ", line)[1].partition(" > ")[0]
        parsed = make_parser().parse_args(shlex.split(call))
        default = f"{parsed.run_folder}-boosted" if call.startswith("boost") else None
        out = getattr(parsed, "out", None) or default
        written += [] if out is None or getattr(parsed, "resume", False) else [str(out)]
    assert len(set(written)) == len(written)


def test_help_completion_and_wrong_options_import_nothing_heavy() -> None:
    script = """if True:
        import sys
        from deepclust_ext.__main__ import main
        asked = [["--help"], ["--version"], ["--print-completion", "bash"], ["train", "--colour"]]
        for arguments in [*asked, *([name, "--help"] for name in sys.argv[1:])]:
            try:
                main(arguments)
            except SystemExit:
                pass
        heavy = {"torch", "numpy", "PIL", "sklearn", "scipy", "torchvision", "matplotlib"} & set(sys.modules)
        sys.exit(f"imported: {heavy}" if heavy else 0)
    """
    done = subprocess.run([sys.executable, "-c", script, *NAMES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_demo_gets_its_arguments_and_gives_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: argparse.Namespace) -> int:
        assert callable(arguments.run)
        return 7

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo"]) == 7


@pytest.mark.parametrize("error", [FloatingPointError, ImportError, OSError, RuntimeError, ValueError])
def test_an_expected_failure_is_one_line_and_status_1(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise error("no such folder: images")

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "deepclust-ext: no such folder: images\n"


def test_an_error_of_the_system_s_own_is_said_without_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "run", lambda arguments: (tmp_path / "nothing").open())
    assert main(["demo"]) == 1
    said = capsys.readouterr().err
    assert said == f"deepclust-ext: {tmp_path / 'nothing'}: cannot be read or written: No such file or directory\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [(KeyboardInterrupt("interrupted in epoch 3"), "interrupted in epoch 3"), (KeyboardInterrupt(), "interrupted")],
)
def test_an_interruption_is_one_line_and_status_130(
    error: KeyboardInterrupt, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo"]) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"deepclust-ext: {line}\n")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--threads", "0"), "argument --threads: expected at least 1, got 0"),
        (("--threads", "two"), "argument --threads: expected an integer, at least 1, got 'two'"),
        (("--epochs", "0"), "argument --epochs: expected at least 1, got 0"),
        (("--batch-size", "-3"), "argument --batch-size: expected at least 1, got -3"),
        (("--seed", "-1"), "argument --seed: expected 0 to 4294967295, got -1"),
        (("--seed", "4294967296"), "argument --seed: expected 0 to 4294967295, got 4294967296"),
    ],
)
def test_an_option_out_of_range_is_named(
    option: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["demo", *option])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "demo", "evaluate", "sweep"])
def test_a_seed_that_no_run_can_have_is_refused_by_every_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"train": ["images"], "demo": [], "evaluate": ["run"], "sweep": ["run", "--clusters", "2:3"]}[command]
    with pytest.raises(SystemExit, match="2"):
        main([command, *given, "--seed", str(LARGEST_SEED + 1)])
    assert f"argument --seed: expected 0 to {LARGEST_SEED}, got {LARGEST_SEED + 1}" in capsys.readouterr().err


def test_names_of_files_in_the_system_s_errors_may_be_bytes() -> None:
    for name in ("rows.npy", b"rows.npy"):
        said = _words(OSError(errno.ENOSPC, "No space left on device", name))
        assert said == "rows.npy: cannot be read or written: No space left on device"
