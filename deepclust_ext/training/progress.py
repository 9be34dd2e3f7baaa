"""What a user sees of a run: a bar on a terminal, a line for each epoch elsewhere."""

import logging
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from torch.utils.data import Dataset
from tqdm import tqdm

from deepclust_ext.data.words import item_of

LOGGER = logging.getLogger("deepclust_ext")

#: Of a record, what its line leaves out.
NOT_SHOWN = ("epoch", "lr")


class Progress:
    """A bar of the steps of a run with images or rows per second and the time that is left, or a line for each epoch.

    Args:
        epochs: Epochs of the whole run.
        steps: Steps of the whole run.
        done: Steps that are already done.
        data: The data that the run goes through.
        shown: Whether to show anything; only one of several ranks does.
    """

    def __init__(self, epochs: int, steps: int, done: int, data: Dataset[Any], *, shown: bool = True) -> None:
        self._epochs, self._steps, self._done, self._shown = epochs, steps, done, shown
        self._unit = f"{item_of(data)}s/s"
        # disable=None: a bar on a terminal, and nothing elsewhere.
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=None if shown else True, smoothing=0.05)
        self._images, self._since, self._begun, self._first = 0, time.perf_counter(), time.perf_counter(), done

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def end_step(self, images: int) -> None:
        """Count a step with this number of images."""
        self._images += images
        self._done += 1
        self._bar.update()

    def end_epoch(self, record: Mapping[str, float]) -> None:
        """Show the record of an epoch."""
        now = time.perf_counter()
        rate = self._images / (now - self._since)
        self._images, self._since = 0, now
        shown = {name: f"{value:.3g}" for name, value in record.items() if name not in NOT_SHOWN}
        self._bar.set_postfix({"epoch": f"{int(record['epoch'])}/{self._epochs}", self._unit: f"{rate:.0f}"} | shown)
        terms = ", ".join(f"{name} {value}" for name, value in shown.items())
        left = (now - self._begun) / max(self._done - self._first, 1) * (self._steps - self._done)
        line = (
            f"epoch {int(record['epoch'])} of {self._epochs}: {terms}, {rate:.0f} {self._unit}, {in_words(left)} left"
        )
        LOGGER.info(line)
        if self._bar.disable and self._shown:
            print(line, file=sys.stderr, flush=True)


def in_words(seconds: float) -> str:
    """Return a time for people, such as "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
