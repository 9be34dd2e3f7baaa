"""Peak memory and loss of one step of PICI at the size of its recipes: `python -m benchmarks.step_memory`.

A step of PICI's transformer with all terms on 96 random images of 224 pixels, in float32 and with `--precision bf16`,
with and without activation checkpointing. Each is the first step of a process of its own, from the same weights, views
and masks. The memory is by how much the peak rises above what was resident before the step: activations, gradients and
the optimizer's state, but neither weights nor images. The losses must agree with that in float32.
"""

import argparse
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from benchmarks.floors import markdown_table
from benchmarks.memory import peak_resident_bytes, received_from_fork, reset_peak
from benchmarks.step_cases import photo_trainer
from deepclust_ext.inference import reused_memory

#: Precision -> largest difference of the loss, relative to that in float32 without checkpointing.
TOLERANCES = {"fp32": 1e-6, "bf16": 1e-2}


class Taken(NamedTuple):
    """What a step took."""

    megabytes: float  # 10^6 bytes
    loss: float


def measure(precision: str, checkpointing: bool, images: int, size: int) -> Taken:
    """Make a step in a process of its own.

    Raises:
        RuntimeError: The process ended without a result.
    """
    what = f"a step in {precision}, checkpointing {checkpointing}"
    return Taken(*received_from_fork(what, send_step, precision, checkpointing, images, size))


def send_step(sender: Connection, precision: str, checkpointing: bool, images: int, size: int) -> None:
    """Make a step in this process, and send what it took."""
    trainer = photo_trainer("pici", images, size, "all", precision=precision, checkpointing=checkpointing)
    trainer.method.train()
    batch = next(iter(trainer._batches(trainer.config.phases[-1], 0)))
    torch.manual_seed(0)
    before = reset_peak()
    with reused_memory():
        loss = trainer._step(batch, 0.0, 0.0)["loss"]
    sender.send(((peak_resident_bytes() - before) / 1e6, float(loss)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a loss is off."""
    parser = argparse.ArgumentParser("python -m benchmarks.step_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96, help="of the batch (default: 96)")
    parser.add_argument("--size", type=int, default=224, help="their sides in pixels (default: 224)")
    options = parser.parse_args(arguments)
    lines, expected, wrong = [], None, 0
    for precision, tolerance in TOLERANCES.items():
        for checkpointing in (False, True):
            taken = measure(precision, checkpointing, options.images, options.size)
            expected = taken.loss if expected is None else expected
            off = abs(taken.loss - expected) / abs(expected)
            wrong += not off <= tolerance
            cells = [f"{taken.megabytes:.0f}", f"{taken.loss:.5f}", f"{off:.0e}"]
            lines.append([precision, "yes" if checkpointing else "no", *cells])
    print(markdown_table(["precision", "checkpointing", "MB", "loss", "off by"], lines))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
