"""The folder of a run: one process at a time, files whole or not at all, checkpoints with a checksum."""

import fcntl
import hashlib
import json
import math
import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from deepclust_ext.data.stores import OF_A_RUN

FORMAT = "deepclust_ext checkpoint 3"
#: What a resumed run reads.
ENTRIES = ("settings", "versions", "method", "optimizer", "pseudo_labels", "epoch_so_far", "kept", "history", "random")

CHECKPOINT_NAME = "checkpoint.pt"
PREVIOUS_NAME = "checkpoint.previous.pt"
HISTORY_NAME = "history.jsonl"
LOCK_NAME = "run.lock"
RECIPE_NAME, RECORD_NAME = OF_A_RUN
LOG_NAME = "train.log"
SKIPPED_NAME = "skipped.csv"
CENTERS_NAME = "centers.npy"
CLUSTERS_NAME = "clusters.csv"
REPORT_NAME = "report.html"
FIGURE_NAME = "overview.png"
#: What shows that a folder holds a run: files of the trainer, of a whole run, and what such a run makes of its weights.
RUN_FILES = (
    *(CHECKPOINT_NAME, PREVIOUS_NAME, HISTORY_NAME),
    *(RECIPE_NAME, RECORD_NAME, LOG_NAME, SKIPPED_NAME),
    *(CENTERS_NAME, CLUSTERS_NAME, REPORT_NAME, FIGURE_NAME),
)

#: Those that a run writes before its first checkpoint, the record first.
BEGINNINGS = (RECORD_NAME, RECIPE_NAME, LOG_NAME, SKIPPED_NAME)

#: What to do about a run that cannot go on here, and about one of another version.
ANEW = "train anew, which overwrite does in the same folder"
OF_ANOTHER_VERSION = f"go on with the version that wrote it, or {ANEW}"

#: How the comment of a checkpoint, which is a zip archive, begins; 64 hexadecimal digits follow.
SEAL = b"sha256:"
SEAL_BYTES = len(SEAL) + 64

#: Descriptors of locks. A process that loads images must not keep the lock of a run that was killed.
_held: set[int] = set()


def _close_inherited_locks() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited_locks)


class RunFolder:
    """The folder of one run, locked for this process within a ``with`` block; blocks may be nested.

    The lock ends with the process, however that ends, so a dead run never blocks the folder.

    Args:
        path: The folder; made when it is locked.

    Attributes:
        begun: Files of the run that this process has already written; :meth:`clear` keeps them.

    Raises:
        RuntimeError: On entering, if another run holds the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun: tuple[str, ...] = ()
        self.checkpoint = path / CHECKPOINT_NAME
        self.previous = path / PREVIOUS_NAME
        self._depth = 0
        self._descriptor = -1

    def __enter__(self) -> "RunFolder":
        if self._depth == 0:
            self._lock()
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._release()

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Require a checkpoint if the run is resumed, and otherwise none, unless it may be overwritten.

        Raises:
            FileNotFoundError: If there is nothing to resume.
            FileExistsError: If there is a run that is neither to be resumed nor to be overwritten.
            ValueError: If both are asked for.
        """
        if resume and overwrite:
            raise ValueError("overwrite: expected False where a run is resumed, got True")
        if resume and not (self.checkpoint.exists() or self.previous.exists()):
            cure = "; the command that began the run starts it over" if has_only_begun(self.path) else ""
            raise FileNotFoundError(f"resume: expected a checkpoint at {self.checkpoint}, got none{cure}")
        found = [name for name in RUN_FILES if (self.path / name).exists()]
        if found and not (resume or overwrite or has_only_begun(self.path)):
            raise FileExistsError(
                f"out: expected a folder without a run, got {self.path}, which holds {', '.join(found)}; "
                f"resume continues that run, overwrite replaces it"
            )

    def clear(self) -> None:
        """Remove the files of a run, except for those in ``begun``; the record, which says that it is one, last."""
        for name in sorted(RUN_FILES, key=RECORD_NAME.__eq__):
            if name not in self.begun:
                remove(self.path / name)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, and keep the one before it; if the folder was removed meanwhile, it is made again."""
        if not (self.path / LOCK_NAME).exists():
            self._release()
            self._lock()
        save_checkpoint(state, self.checkpoint, keep=self.previous)

    def load(self) -> dict[str, Any]:
        """Return the state of the last checkpoint.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it cannot be read; says whether the one before it can.
        """
        if self.previous.exists() and not self.checkpoint.exists():  # killed between the two renames of a save
            return load_checkpoint(self.previous)
        try:
            return load_checkpoint(self.checkpoint)
        except ValueError as error:
            try:
                epochs = len(load_checkpoint(self.previous)["history"])
            except (OSError, ValueError):
                raise error from None
            raise ValueError(
                f"{error}. {self.previous} is whole and holds the run after epoch {epochs}: move it to "
                f"{self.checkpoint} to go by that one"
            ) from error

    def write_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write a line of JSON for each record."""
        lines = "".join(json.dumps(without_nan(record), allow_nan=False) + "\n" for record in records)
        write_text(self.path / HISTORY_NAME, lines)

    def _lock(self) -> None:
        path = self.path / LOCK_NAME
        with named(path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _held.add(self._descriptor)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._descriptor, 200).decode(errors="replace")
            self._release()
            raise RuntimeError(
                f"out: expected a folder that no other run uses, got {self.path}, in use by process {owner}"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{path}: this file system has no locks ({error}); see to it that no other run uses {self.path}",
                RuntimeWarning,
                stacklevel=4,
            )
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()} on {platform.node()}".encode())

    def _release(self) -> None:
        if self._descriptor in _held:  # a forked process has closed its own already
            _held.remove(self._descriptor)
            os.close(self._descriptor)


def check_writable(folder: Path, option: str) -> None:
    """Require a folder in which files can be written, or a place where one can be made.

    Args:
        folder: It may be missing, and folders above it too.
        option: What it was given as, for messages.

    Raises:
        NotADirectoryError: If something else lies there, or where a folder above it has to be.
        PermissionError: If nothing can be written there.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        kind = "the file" if there.exists() else "the link to nothing"
        raise NotADirectoryError(
            f"{option}: expected a folder, got {kind} {there}"
            if there == folder
            else f"{option}: expected a folder at {folder}, got {kind} {there} in its way"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{option}: expected a folder to write to at {folder}, got {there}, in which nothing can be written"
        )


@contextmanager
def named(what: Path | str) -> Iterator[None]:
    """Let an OSError from writing or removing a file begin with the file's name, in one line."""
    try:
        yield
    except OSError as error:
        raise _named(what, error) from error


def _named(what: Path | str, error: OSError) -> OSError:
    found = OSError(f"{what}: cannot be written: {error.strerror or error}")
    found.errno = error.errno
    return found


def remove(path: Path) -> None:
    """Remove a file if it is there; an OSError names it."""
    with named(path):
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Yield a path to write to; after the block that file replaces ``path``, and after an error it is removed.

    Args:
        path: Holds either the old file or the whole new one, whatever interrupts.
        keep: Where the old file goes, if anywhere.

    Raises:
        OSError: If the file cannot be written; names it.
    """
    unfinished = path.with_name(f".{path.stem}.tmp{path.suffix}")  # hidden; writers of figures go by the suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with unfinished.open("rb+") as stream:
            os.fsync(stream.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        unfinished.replace(path)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink()
        # Torch's writer raises a RuntimeError while it closes, which hides what happened.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise _named(path, cause) from error
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write text so that ``path`` holds either the old file or the whole new one."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files may be no UTF-8


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file so that ``path`` holds either the old file or the whole new one."""
    array = np.ascontiguousarray(array)
    with replacing(path) as unfinished, unfinished.open("wb") as stream:
        # Not numpy's save: of a file's last bytes it does not notice that a full disk has not taken them.
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)


def without_nan(value: Any) -> Any:
    """Return a value for JSON, which has no NaN and no infinity: None in their place."""
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_checkpoint(state: Mapping[str, Any], path: Path, *, keep: Path | None = None) -> None:
    """Write what ``torch.load(weights_only=True)`` reads, with the SHA-256 of all bytes as the archive's comment."""
    with replacing(path, keep=keep) as unfinished, unfinished.open("wb+") as stream:
        torch.save(state, stream)
        stream.seek(-2, os.SEEK_END)  # a zip archive ends with the length of its comment, and the comment
        stream.write(SEAL_BYTES.to_bytes(2, "little"))
        stream.write(SEAL + _digest(stream, stream.tell()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state that a trainer wrote; no code in the file is executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a whole checkpoint of this format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: expected one at {path}, got none")
    fault = _fault(path)
    if fault is not None:
        raise ValueError(f"checkpoint: expected a whole one at {path}, got {fault}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Not torch's own message, which proposes to execute what the file holds.
        raise ValueError(
            f"checkpoint: expected one at {path}, got a file that holds more than tensors and plain values "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        is_ours = str(found).startswith(FORMAT.rstrip("0123456789"))
        other = f", of another version of deepclust_ext: {OF_ANOTHER_VERSION}" if is_ours else ""
        raise ValueError(f"checkpoint: expected a file of the format {FORMAT!r} at {path}, got {found!r}{other}")
    missing = [name for name in ENTRIES if name not in state]
    if missing:
        raise ValueError(f"checkpoint: expected {', '.join(ENTRIES)} in {path}, got none of {', '.join(missing)}")
    return state


def has_only_begun(path: Path) -> bool:
    """Return whether a folder holds a run that was killed before its first checkpoint, so that nothing is lost."""
    if any((path / name).exists() for name in RUN_FILES if name not in BEGINNINGS):
        return False
    try:
        record = json.loads((path / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("status") in ("training", "stopped")


def is_checkpoint(path: Path) -> bool:
    """Return whether there is a whole checkpoint; it is not opened."""
    return path.is_file() and _fault(path) is None


def _fault(path: Path) -> str | None:
    """Return what is wrong with the bytes of a checkpoint, or None."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if size == 0:
            return "an empty file"
        if stream.read(4) != b"PK\x03\x04":
            return "a file of another kind"
        stream.seek(max(size - SEAL_BYTES, 0))
        seal = stream.read()
        if not seal.startswith(SEAL):
            return "a file without a checksum at its end: it is incomplete, or not of this version of deepclust_ext"
        if seal != SEAL + _digest(stream, size - SEAL_BYTES):
            return "a damaged file: its checksum is not that of its bytes"
    return None


def _digest(stream: BinaryIO, length: int) -> bytes:
    """Return the SHA-256 of the first bytes of a file as hexadecimal digits, and stand behind them."""
    digest = hashlib.sha256()
    stream.seek(0)
    while length > 0 and (block := stream.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()
