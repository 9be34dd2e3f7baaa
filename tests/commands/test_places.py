"""Places that cannot be written: one line that names what was wanted and what is in the way, before any work."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from deepclust_ext.__main__ import main
from deepclust_ext.training.files import load_checkpoint
from tests.runs.runfolders import make_run, write_images, write_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file that lies where folders shall be, and images that nobody gets to read."""

    def read(*sources: Any, **settings: Any) -> Any:
        raise AssertionError("images were read")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deepclust_ext.runs.source.load_images", read)
    monkeypatch.setattr("deepclust_ext.data.Digits", read)
    write_images(tmp_path / "images", count=1), write_recipe(tmp_path)
    (tmp_path / "file").write_text("mine")
    return tmp_path


#: Commands, the option that says where, and the folder that it asks for.
WRITE = [
    (["train", "images", "--recipe", "small.yaml", "--out", "PLACE/run"], "out", "PLACE/run"),
    (["demo", "--out", "PLACE/run"], "out", "PLACE/run"),
    (["embed", "RUN", "--out", "PLACE/rows.npz"], "out", "PLACE"),
    (["embed", "RUN", "--out", "PLACE/deep/rows.npz"], "out", "PLACE/deep"),
    (["export", "RUN", "--out", "PLACE/deep/network.pt2"], "out", "PLACE/deep"),
    (["cluster", "RUN", "--out", "PLACE/deep/table.csv"], "out", "PLACE/deep"),
    (["cluster", "RUN", "--out", "table.csv", "--into", "PLACE/sorted"], "into", "PLACE/sorted"),
    (["report", "RUN", "--out", "PLACE/deep/page.html"], "out", "PLACE/deep"),
    (["sweep", "RUN", "--clusters", "2:3", "--out", "PLACE/deep"], "out", "PLACE/deep"),
]


def place(arguments: list[str], run: Path, folder: str) -> list[str]:
    return [argument.replace("RUN", str(run)).replace("PLACE", folder) for argument in arguments]


@pytest.mark.parametrize(("arguments", "option", "wanted"), WRITE)
def test_a_file_in_the_way_is_named(
    arguments: list[str], option: str, wanted: str, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(place(arguments, run, "file")) == 1
    folder = wanted.replace("PLACE", "file")
    found = "the file file" if folder == "file" else f"the file {here / 'file'} in its way"
    expected = (
        f"--{option}: expected a folder, got" if folder == "file" else f"--{option}: expected a folder at {folder}, got"
    )
    assert capsys.readouterr().err == f"deepclust-ext: {expected} {found}\n"
    assert (here / "file").read_text() == "mine"


@pytest.mark.parametrize(("arguments", "option", "wanted"), WRITE)
def test_a_folder_that_cannot_be_written_is_named(
    arguments: list[str],
    option: str,
    wanted: str,
    run: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "shut").mkdir()
    can_access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut" and can_access(path, mode))
    assert main(place(arguments, run, "shut")) == 1
    folder = wanted.replace("PLACE", "shut")
    found = "shut" if folder == "shut" else here / "shut"
    expected = f"--{option}: expected a folder to write to at {folder}, got {found}, in which nothing can be written"
    assert capsys.readouterr().err == f"deepclust-ext: {expected}\n"
    assert not list((here / "shut").iterdir())


@pytest.mark.parametrize("command", ["cluster", "report"])
def test_a_run_that_cannot_be_written_is_named(
    command: str, run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert main([command, str(run)]) == 1
    assert f"--out: expected a folder to write to at {run}, got {run}, in which" in capsys.readouterr().err


def test_what_fails_while_files_are_sorted_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target), None, str(path))

    monkeypatch.setattr(Path, "symlink_to", full)
    arguments = ["cluster", str(run), "--out", str(tmp_path / "table.csv"), "--into", str(tmp_path / "sorted")]
    assert main(arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"deepclust-ext: {tmp_path / 'sorted'}/cluster-")
    assert last.endswith(
        f", of {run.parent / 'images' / 'bars' / '00.png'}: cannot be written: No space left on device"
    )


def test_a_folder_that_becomes_read_only_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, right = tmp_path / "run", open

    def is_shut(path: Any) -> bool:
        return str(path).startswith(str(out)) and (out / "history.jsonl").exists() and count_epochs(out) >= 1

    def read_only(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if set(mode) & set("wax+") and is_shut(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return right(path, mode, *rest, **options)

    monkeypatch.setattr(io, "open", read_only)
    monkeypatch.setattr("builtins.open", read_only)
    images, recipe = write_images(tmp_path / "images"), write_recipe(tmp_path)
    assert main(["train", str(images), "--recipe", str(recipe), "--out", str(out), "--epochs", "3"]) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == f"deepclust-ext: {out / 'checkpoint.pt'}: cannot be written: Read-only file system"
    assert "Errno" not in said
    assert len(load_checkpoint(out / "checkpoint.pt")["history"]) == 1


def test_a_full_disk_under_tensorboard_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")

    def full(writer: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensorboard.SummaryWriter, "flush", full)
    images, recipe, out = write_images(tmp_path / "images"), write_recipe(tmp_path), tmp_path / "run"
    assert main(["train", str(images), "--recipe", str(recipe), "--out", str(out)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"deepclust-ext: {out / 'tensorboard'}: cannot be written: No space left on device"


def count_epochs(out: Path) -> int:
    return (out / "history.jsonl").read_bytes().count(b"\n")
