"""The folder of a run: nothing is lost by kills, full disks, damaged files, second runs or a removed folder."""

import errno
import json
import os
import re
import shutil
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.data import RandomAffine
from deepclust_ext.training import Phase
from deepclust_ext.training.files import (
    CHECKPOINT_NAME,
    HISTORY_NAME,
    LOCK_NAME,
    PREVIOUS_NAME,
    RunFolder,
    load_checkpoint,
    replacing,
    save_checkpoint,
    without_nan,
    write_text,
)
from tests.forks import run_python
from tests.training.runs import assert_same_run, config_of, make_trainer, stop, without_seconds

SHORT = (Phase("warmup", 3, {"images": "warmup"}),)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of three epochs."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, config=config_of(phases=SHORT)).fit()
    return folder


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_checkpoint_is_a_plain_file_of_torch(stored: Path) -> None:
    with zipfile.ZipFile(stored / CHECKPOINT_NAME) as archive:
        assert re.fullmatch(rb"sha256:[0-9a-f]{64}", archive.comment)
        assert archive.testzip() is None
    state = torch.load(stored / CHECKPOINT_NAME, weights_only=True)
    assert len(state["history"]) == len(load_checkpoint(stored / CHECKPOINT_NAME)["history"]) == 3
    assert len(load_checkpoint(stored / PREVIOUS_NAME)["history"]) == 2
    assert files_of(stored) == {CHECKPOINT_NAME, PREVIOUS_NAME, HISTORY_NAME, LOCK_NAME}


def test_every_flipped_bit_is_found(stored: Path, tmp_path: Path) -> None:
    whole = (stored / CHECKPOINT_NAME).read_bytes()
    path = tmp_path / CHECKPOINT_NAME
    ends = [*range(100), *range(len(whole) - 300, len(whole))]
    for place in {*ends, *range(0, len(whole), len(whole) // 300)}:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=f"^checkpoint: expected a whole one at {re.escape(str(path))}, got a "):
            load_checkpoint(path)


def as_saved(state: Any) -> bytes:
    """Return the file of a state with its checksum, whatever it holds."""
    path = Path("state.pt")
    save_checkpoint(state, path)
    return path.read_bytes()


CHECKSUM = "got a file without a checksum at its end: it is incomplete, or not of this version"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: b"", "got an empty file"),
        (lambda whole: b"a text\n" * 100, "got a file of another kind"),
        (lambda whole: b"\0" * len(whole), "got a file of another kind"),
        (lambda whole: whole[:3], "got a file of another kind"),
        (lambda whole: whole[:20], CHECKSUM),
        (lambda whole: whole[: len(whole) // 2], CHECKSUM),
        (lambda whole: whole[:-100], CHECKSUM),
        (lambda whole: whole[:-1], CHECKSUM),
        (lambda whole: whole + b"\n", CHECKSUM),
        (lambda whole: whole[:50] + whole[51:], "got a damaged file: its checksum is not that of its bytes"),
        (lambda whole: as_saved(torch.zeros(2)), "expected a file of the format .* at .*, got 'Tensor'"),
        (lambda whole: as_saved({"format": "else"}), "expected a file of the format .* at .*, got 'else'"),
        (
            lambda whole: as_saved({"format": "deepclust_ext checkpoint 2"}),
            "got .deepclust_ext checkpoint 2., of another version of deepclust_ext: go on with the version that",
        ),
        (
            lambda whole: as_saved({**torch.load(Path("whole.pt"), weights_only=True), "method": nn.ReLU()}),
            r"got a file that holds more than tensors and plain values \(UnpicklingError\)$",
        ),
        (
            lambda whole: as_saved({"format": load_checkpoint(Path("whole.pt"))["format"], "settings": {}}),
            "expected settings, .* in .*checkpoint.pt, got none of versions, method, optimizer",
        ),
    ],
)
def test_a_foreign_or_broken_file_is_named(
    stored: Path, tmp_path: Path, content: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = (stored / CHECKPOINT_NAME).read_bytes()
    Path("whole.pt").write_bytes(whole)
    path = tmp_path / "run" / CHECKPOINT_NAME
    path.parent.mkdir()
    path.write_bytes(content(whole))
    with pytest.raises(ValueError, match=message) as caught:
        make_trainer(path.parent, config=config_of(phases=SHORT)).fit(resume=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_checkpoint_before_a_damaged_one_is_offered(stored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stored, folder)
    path, previous = folder / CHECKPOINT_NAME, folder / PREVIOUS_NAME
    path.write_bytes(path.read_bytes()[:-200])
    trainer = make_trainer(folder, config=config_of(phases=SHORT))
    offer = f"{previous} is whole and holds the run after epoch 2: move it to {path} to go by that one"
    with pytest.raises(ValueError, match=re.escape(offer)):
        trainer.fit(resume=True)
    previous.rename(path)
    trainer.fit(resume=True)
    assert without_seconds(trainer.history) == without_seconds(load_checkpoint(stored / CHECKPOINT_NAME)["history"])
    # Where both are damaged there is nothing to offer.
    path.write_bytes(b"")
    previous.write_bytes(b"")
    with pytest.raises(ValueError, match="got an empty file$"):
        trainer.fit(resume=True)


def test_a_kill_between_the_renames_costs_one_epoch(stored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stored, folder)
    (folder / CHECKPOINT_NAME).unlink()
    trainer = make_trainer(folder, config=config_of(phases=SHORT))
    trainer.fit(resume=True)
    assert without_seconds(trainer.history) == without_seconds(load_checkpoint(stored / CHECKPOINT_NAME)["history"])


def test_nothing_to_resume_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="resume: expected a checkpoint at .*checkpoint.pt, got none"):
        make_trainer(tmp_path).fit(resume=True)


def test_a_used_folder_is_refused(stored: Path) -> None:
    before = {name: (stored / name).read_bytes() for name in (CHECKPOINT_NAME, PREVIOUS_NAME, HISTORY_NAME)}
    trainer = make_trainer(stored, config=config_of(phases=SHORT))
    with pytest.raises(
        FileExistsError,
        match=f"out: expected a folder without a run, got {stored}, which holds checkpoint.pt, .*; resume continues",
    ):
        trainer.fit()
    with pytest.raises(ValueError, match="overwrite: expected False where a run is resumed, got True"):
        trainer.fit(resume=True, overwrite=True)
    assert {name: (stored / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("name", [CHECKPOINT_NAME, PREVIOUS_NAME, HISTORY_NAME, "run.json", "overview.png"])
def test_any_file_of_a_run_counts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(FileExistsError, match=f"which holds {name};"):
        make_trainer(tmp_path).fit()


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_new_run_over_an_old_one_never_continues_it(stored: Path, tmp_path: Path, epoch: int) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stored, folder)
    (folder / "run.json").touch()
    config = config_of(phases=SHORT, seed=7)
    whole = make_trainer(tmp_path / "whole", config=config)
    whole.fit()
    stop(folder, epoch, 1, "hadis", config=config, overwrite=True)
    assert not (folder / "run.json").exists()
    assert len((folder / HISTORY_NAME).read_text().splitlines()) == epoch
    resumed = make_trainer(folder, config=config)
    resumed.fit(resume=True)
    assert_same_run(whole, resumed)


def test_an_epoch_is_a_line_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainer(tmp_path / "log", config=config_of(phases=SHORT)).fit()
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 3
    assert all(re.match(rf"epoch {i + 1} of 3: loss -?\d.*, dsa .*, seconds \d", lines[i]) for i in range(3))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    make_trainer(tmp_path / "terminal", config=config_of(phases=SHORT)).fit()
    assert "epoch 1 of 3" not in capsys.readouterr().err


def test_a_history_is_json_whatever_it_holds(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_history([{"epoch": 1, "loss": 0.5, "rank": float("nan")}])
    assert json.loads((tmp_path / HISTORY_NAME).read_text(), parse_constant=pytest.fail) == {
        "epoch": 1,
        "loss": 0.5,
        "rank": None,
    }
    assert without_nan({"a": [1.0, float("inf")], "b": (float("-inf"), "nan")}) == {
        "a": [1.0, None],
        "b": [None, "nan"],
    }


def test_a_second_run_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    seconds: list[BaseException] = []

    class Second(RandomAffine):
        def forward(self, images: Tensor) -> Tensor:
            if not seconds:
                with pytest.raises(RuntimeError) as caught:
                    make_trainer(tmp_path).fit(overwrite=True)
                seconds.append(caught.value)
            return super().forward(images)

    views = [Second(), RandomAffine()]
    trainer = make_trainer(tmp_path, config=config_of(phases=SHORT), views=views)
    assert len(trainer.fit()) == 3
    assert re.fullmatch(
        rf"out: expected a folder that no other run uses, got {tmp_path}, in use by process {os.getpid()} on .*",
        str(seconds[0]),
    )
    assert len(load_checkpoint(tmp_path / CHECKPOINT_NAME)["history"]) == 3
    make_trainer(tmp_path).fit(overwrite=True)  # the first has ended


def test_another_process_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path: Path) -> None:
    # The other process is killed while it holds a lock, and one of its own lives on, as those that load images may.
    script = """if True:
        import os, signal, sys, time
        from pathlib import Path
        from deepclust_ext.training.files import RunFolder
        try:
            RunFolder(Path(sys.argv[1])).__enter__()
        except RuntimeError as error:
            print(error, flush=True)
        RunFolder(Path(sys.argv[2])).__enter__()
        child = os.fork()
        if child == 0:
            os.close(1)
            os.close(2)
            time.sleep(60)
            os._exit(0)
        print(os.getpid(), child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with RunFolder(tmp_path / "mine"):
        done = run_python(script, tmp_path / "mine", tmp_path / "dead")
    assert done.returncode == -signal.SIGKILL, done.stderr
    message, numbers = done.stdout.splitlines()
    assert f"in use by process {os.getpid()} on " in message
    parent, child = map(int, numbers.split())
    lock = tmp_path / "dead" / LOCK_NAME
    try:
        assert lock.read_text().startswith(f"{parent} on ")
        os.kill(child, 0)  # it lives
        with RunFolder(tmp_path / "dead"):
            assert lock.read_text().startswith(f"{os.getpid()} on ")
    finally:
        os.kill(child, signal.SIGKILL)


def test_locks_nest_and_where_there_are_none_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    with folder:
        with folder:
            pass
        with pytest.raises(RuntimeError, match="in use by process"):
            RunFolder(tmp_path).__enter__()

    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with (
        pytest.warns(RuntimeWarning, match="this file system has no locks .* see to it that no other run uses"),
        folder,
    ):
        pass


class Removing(RandomAffine):
    """The view of a batch; removes a folder at the seventh."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 7:
            shutil.rmtree(self.folder)
        return super().forward(images)

    def __repr__(self) -> str:
        return repr(RandomAffine())


def test_a_removed_folder_is_made_again(tmp_path: Path, stored: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    trainer = make_trainer(folder, config=config_of(phases=SHORT), views=[Removing(folder.parent), RandomAffine()])
    trainer.fit()
    history = without_seconds(load_checkpoint(stored / CHECKPOINT_NAME)["history"])
    assert without_seconds(load_checkpoint(folder / CHECKPOINT_NAME)["history"]) == history
    assert without_seconds([json.loads(line) for line in (folder / HISTORY_NAME).read_text().splitlines()]) == history
    assert (folder / LOCK_NAME).exists()


def test_a_full_disk_names_the_file_and_leaves_the_last_checkpoint(stored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stored, folder)
    before = {name: (folder / name).read_bytes() for name in files_of(folder)}
    script = """if True:
        import resource, sys, torch
        from pathlib import Path
        from deepclust_ext.training.files import RunFolder
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        for write in (lambda folder: folder.save({"weights": torch.zeros(100_000)}),
                      lambda folder: folder.write_history([{"loss": 0.5}] * 5000)):
            with RunFolder(Path(sys.argv[1])) as folder:
                try:
                    write(folder)
                except OSError as error:
                    print(error.errno, error)
    """
    done = run_python(script, folder)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"{errno.EFBIG} {folder / name}: cannot be written: File too large" for name in (CHECKPOINT_NAME, HISTORY_NAME)
    ]
    del before[LOCK_NAME]
    assert {name: (folder / name).read_bytes() for name in files_of(folder) - {LOCK_NAME}} == before


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / CHECKPOINT_NAME
    save_checkpoint({"epoch": 1}, path)
    right = torch.save

    def half_written(state: Any, stream: Any) -> None:
        stream.write(b"half")
        try:
            raise error
        finally:
            raise RuntimeError("unexpected pos")  # as torch's writer does while it closes

    monkeypatch.setattr(torch, "save", half_written)
    error: BaseException = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=f"^{re.escape(str(path))}: cannot be written: No space left on device$"):
        save_checkpoint({"epoch": 2}, path)
    error = KeyboardInterrupt("now")
    with pytest.raises(KeyboardInterrupt, match="now"):
        save_checkpoint({"epoch": 2}, path)
    error = TypeError("a weight that nobody can write")
    with pytest.raises(RuntimeError, match="unexpected pos"):
        save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert files_of(tmp_path) == {CHECKPOINT_NAME}
    monkeypatch.setattr(torch, "save", right)
    save_checkpoint({"epoch": 3}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 3}
    assert files_of(tmp_path) == {CHECKPOINT_NAME}


def test_text_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as unfinished:
        unfinished.write_text("half, then what no encoding has: \ud800", encoding="utf-8")
    assert path.read_text() == "old"
    assert files_of(path.parent) == {"run.json"}
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/run.json: cannot be written: "):
        write_text(tmp_path / "file" / "run.json", "new")
