"""Measures where the time of an epoch goes."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import ProfilerActivity, profile

from deepclust_ext.training import Trainer
from deepclust_ext.training.trainer import STAGES


@contextmanager
def profiled(trainer: Trainer) -> Iterator[None]:
    """Run torch's profiler for a while, and print a table of the labeled stages of an epoch; meant for few epochs."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        yield
    history = trainer.history
    total = sum(record["seconds"] for record in history)
    spent = {event.key: event.cpu_time_total / 1e6 for event in profiler.key_averages() if event.key in STAGES}
    spent["rest"] = total - sum(spent.values())
    rows = [f"{name:<12}{1e3 * spent[name] / len(history):8.0f} ms {spent[name] / total:6.0%}" for name in spent]
    print("\n".join([f"an epoch, mean of {len(history)}", *rows]))
