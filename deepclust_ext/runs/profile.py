"""Measures where the time of an epoch goes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

from deepclust_ext.training import Trainer
from deepclust_ext.training.files import HISTORY_NAME
from deepclust_ext.training.trainer import STAGES

#: Above all that kineto, the profiler's library, says: without a GPU it calls the missing driver an error.
SILENT = "6"


@contextmanager
def profiled(trainer: Trainer) -> Iterator[None]:
    """Run torch's profiler for a while, and print a table of the labeled stages of an epoch; meant for few epochs."""
    if not torch.cuda.is_available():
        os.environ.setdefault("KINETO_LOG_LEVEL", SILENT)  # it is read once, when the first profiler starts
    path = trainer.folder.path / HISTORY_NAME
    before = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        yield
    history = trainer.history[before:]  # without what a resumed run has done before
    if not history:
        return
    total = sum(record["seconds"] for record in history)
    spent = {event.key: event.cpu_time_total / 1e6 for event in profiler.key_averages() if event.key in STAGES}
    spent["rest"] = total - sum(spent.values())
    rows = [f"{name:<12}{1e3 * spent[name] / len(history):8.0f} ms {spent[name] / total:6.0%}" for name in spent]
    print("\n".join([f"an epoch, mean of {len(history)}", *rows]))
