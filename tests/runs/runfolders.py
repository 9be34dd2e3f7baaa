"""Folders of small images, and small runs on them, by the commands alone."""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deepclust_ext.__main__ import main

ROOT = Path(__file__).parents[2]

CLASSES = ("bars", "blobs", "rings")

#: A run of CLC of a second on the images below: two epochs of seven steps.
RECIPE = """
method: CLC
data: {dataset: shapes, protocol: all, images: 60, num_clusters: 3, size: 12, channels: 1}
backbone: {name: "tests.runs.runfolders:tiny_network"}
views: [{name: affine}, {name: affine}]
model: {hidden_dim: 8, embedding_dim: 4, queue_size: 16}
optimizer: {name: adam, lr: 1.0e-3}
batch_size: 8
phases: [{name: main, epochs: 2}]
"""


def tiny_network():  # type: ignore[no-untyped-def]
    """Return a network from (B, 1, 12, 12) to (B, 16)."""
    from torch import nn

    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16))


def write_images(folder: Path, *, count: int = 20, size: int = 12, seed: int = 0) -> Path:
    """Write gray images of three classes in folders of their names, and return the folder."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            y, x = rng.uniform(4, size - 4, 2)
            distance = np.hypot(rows - y, columns - x)
            shape = {"bars": abs(rows - y) < 2, "blobs": distance < 3, "rings": abs(distance - 4) < 1}[name]
            values = 40 + 160 * shape + rng.uniform(0, 40, (size, size))
            Image.fromarray(values.astype(np.uint8)).save(folder / name / f"{index:02}.png")
    return folder


def write_recipe(folder: Path) -> Path:
    """Write the small recipe and return its path."""
    path = folder / "small.yaml"
    path.write_text(RECIPE)
    return path


def make_run(folder: Path, *options: str) -> Path:
    """Train by the command on images in ``folder / "images"``, which are written, and return the run's folder."""
    images, recipe = write_images(folder / "images"), write_recipe(folder)
    out = folder / "run"
    assert main(["train", str(images), "--recipe", str(recipe), "--out", str(out), *options]) == 0
    return out


def start(arguments: Sequence[str | Path], cwd: Path) -> "subprocess.Popen[str]":
    """Start a command in a process of its own, which takes SIGINT even where this one ignores it, in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "deepclust_ext", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
