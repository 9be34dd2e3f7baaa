"""Rows and clusters of the images of a data set, in the data set's order."""

import os

import torch

from deepclust_ext.inference.images import IndexedImages, moved, takes_any_size
from deepclust_ext.inference.loader import Loader
from deepclust_ext.inference.loop import assign, device_of, embed, map_images
from deepclust_ext.inference.memory import reused_memory
from deepclust_ext.inference.pretrained import Pretrained
from deepclust_ext.inference.trained import Trained

__all__ = [
    "IndexedImages",
    "Loader",
    "Pretrained",
    "Trained",
    "assign",
    "device_of",
    "embed",
    "load",
    "map_images",
    "moved",
    "reused_memory",
    "takes_any_size",
]


def load(run: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Trained:
    """Return the trained method of a run's folder, a module that maps images to rows and shares of clusters.

    Args:
        run: The folder that the command `train` has written.
        device: Where the method computes.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no run.
        ValueError: If a file of it is damaged.
    """
    # A door: users look for it here, and only the room of runs knows their folders.
    from deepclust_ext.runs import load as load_run

    return load_run(run, device=device)
