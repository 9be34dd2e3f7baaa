"""TensorBoard's files of a run, where the extra `tensorboard` is installed."""

from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepclust_ext.training.files import named


class Board:
    """Writes the records of epochs for TensorBoard; without its package it does nothing.

    Args:
        folder: Folder for TensorBoard's files.
        written: Whether to write files.
    """

    def __init__(self, folder: Path, *, written: bool = True) -> None:
        self._folder, self._written = folder, written
        self._writer: Any = None

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        """Close TensorBoard's file, of which every record was written before."""
        if self._writer is not None:
            with suppress(OSError):  # which was said by then
                self._writer.close()
            self._writer = None

    def write(self, record: Mapping[str, float], found: Mapping[str, float]) -> Mapping[str, float]:
        """Write the record of an epoch and the values found after it, and return the latter.

        Raises:
            OSError: If it cannot be written; the message names the folder.
        """
        if not self._folder.is_dir():  # removed while the run goes on
            self._close()
        if self._written and self._writer is None and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            # What a run wrote beyond the epoch that it goes on from is hidden.
            with named(self._folder):
                self._writer = SummaryWriter(str(self._folder), purge_step=int(record["epoch"]))
        if self._writer is not None:
            with named(self._folder):
                for name, value in {**record, **found}.items():
                    if name != "epoch":
                        self._writer.add_scalar(name, value, int(record["epoch"]))
                self._writer.flush()
        return found
