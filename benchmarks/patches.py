"""Patches of color photographs, one folder for each: images to cluster whose right clusters are known.

    python -m benchmarks.patches patches
    deepclust-ext train patches --clusters 7 --labels folders --out runs/patches

The photographs are five that ship with scikit-image (`pip install scikit-image`) and both of scikit-learn. Of each, 200
squares of 96 pixels are drawn by a fixed seed and reduced to 32. Squares of one photograph overlap, and show different
things. So no method can find all of them without labels.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from tqdm import tqdm

PATCHES, SIDE, REDUCED = 200, 96, 32
SEED = 0


def photographs() -> dict[str, NDArray[np.uint8]]:
    """Return the photographs by name, (H, W, 3).

    Raises:
        ImportError: If scikit-image is missing.
    """
    from skimage import data

    ours = {
        "astronaut": data.astronaut(),
        "cat": data.cat(),
        "coffee": data.coffee(),
        "motorcycle": data.stereo_motorcycle()[0],
        "rocket": data.rocket(),
    }
    theirs = load_sample_images()
    names = (Path(name).stem for name in theirs.filenames)
    return ours | dict(zip(names, theirs.images, strict=True))


def patches_of(photograph: NDArray[np.uint8], generator: np.random.Generator) -> list[Image.Image]:
    """Return squares of a photograph, drawn with replacement and reduced."""
    height, width, _ = photograph.shape
    corners = zip(
        generator.integers(height - SIDE + 1, size=PATCHES),
        generator.integers(width - SIDE + 1, size=PATCHES),
        strict=True,
    )
    patches = (Image.fromarray(photograph[top : top + SIDE, left : left + SIDE]) for top, left in corners)
    return [patch.resize((REDUCED, REDUCED), Image.Resampling.BOX) for patch in patches]


def write(folder: Path) -> None:
    """Write the patches as PNG files into a folder for each photograph.

    Raises:
        FileExistsError: If the folder exists.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(SEED)
    for name, photograph in tqdm(photographs().items(), unit="photograph"):
        (folder / name).mkdir()
        for number, patch in enumerate(patches_of(photograph, generator)):
            patch.save(folder / name / f"{number:03d}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the patches; return 1 if that is impossible."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.patches", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="new folder for the patches")
    options = parser.parse_args(arguments)
    try:
        write(options.folder)
    except FileExistsError:
        parser.error(f"folder: expected a new one, got {options.folder}, which exists")
    except ImportError as missing:
        parser.error(f"scikit-image is not installed: {missing}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
