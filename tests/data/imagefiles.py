"""Small files of images, and what is handed over of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def save(path: Path, values: NDArray[Any] | None = None) -> NDArray[Any]:
    """Write an image of 12 x 16 pixels, or these, and return it (H, W, C) float32 between 0 and 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = pixels(12, 16, 3) if values is None else values
    Image.fromarray(values).save(path)
    scaled: NDArray[Any] = values.astype(np.float32) / np.float32(255)
    return scaled if scaled.ndim == 3 else scaled[:, :, None]


def scaled(image: torch.Tensor) -> NDArray[Any]:
    """Return an image that is handed over as what its files hold, between 0 and 1."""
    whites = {torch.uint8: 255, torch.uint16: 65535}
    values: NDArray[Any] = image.numpy().astype(np.float32) / np.float32(whites.get(image.dtype, 1))
    return values


def hwc(image: torch.Tensor) -> NDArray[Any]:
    return scaled(image).transpose(1, 2, 0)
