"""Images as rows of a frozen network: embedded once, and kept in the folder of a run."""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from deepclust_ext.data import Features, Images
from deepclust_ext.data.feature_stores import Rows
from deepclust_ext.data.kept import fault_of, keep_array
from deepclust_ext.data.stores import Mapped
from deepclust_ext.inference.pretrained import Pretrained
from deepclust_ext.ops._checks import counted
from deepclust_ext.training.files import replacing
from deepclust_ext.training.ranks import Ranks


class EmbeddedImages(Features):
    """Rows of features that stand for images; the images are still used for pictures and files.

    Names and classes are those of the images. Unreadable images, and rows with NaN or infinity, are left out and listed
    in ``skipped``.

    Args:
        rows: One for each image.
        images: The images.
        network: The network that made the rows.
    """

    item = "image"

    def __init__(self, rows: Rows, images: Images, network: Pretrained) -> None:
        self.images, self.network, rows.names, self.range = images, network, images.names, images.range
        classes = None
        if images.labels is not None and images.classes is not None:
            classes = [images.classes[label] for label in images.labels.tolist()]
        super().__init__([rows], classes=classes)
        self.skipped = [*images.skipped, *self.skipped]
        self.notes[1:1] = images.notes[1:]

    @property
    def pictures(self) -> Dataset[Any]:
        """The images of these rows."""
        return Subset(self.images, self.indices.tolist())

    def path(self, index: int) -> Path | None:
        """Return the file of an image, or None where it lies in an array."""
        return self.images.path(int(self.indices[index]))


def embed_images(
    open_images: Callable[[int | None], Images],
    network: Pretrained,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
) -> EmbeddedImages:
    """Return images as rows of a network, which runs only if no folder has these rows already.

    If ``torch.distributed`` is initialized, all ranks share the images.

    Args:
        open_images: Opens the images; its argument is the number of channels that gray images get, or None.
        network: The network of a run, with the digest of its weights, or one named by the user, which is loaded first.
        folder: Where the rows are kept, as features-FINGERPRINT.npy; a file in a neighboring folder is used too.
        device: Where the network computes.
        num_workers: Processes that load images.

    Raises:
        OSError: If the rows cannot be kept; the message names the file.
        ValueError: If the file of rows is damaged, the images have other channels than the network takes, or the
            network gives something else than rows; see also :meth:`Pretrained.load`.
    """
    module = None
    if network.digest is None:
        network, module = network.load()
    assert network.mean is not None
    images = open_images(3 if len(network.mean) == 3 else None)
    if images.channels != len(network.mean):
        raise ValueError(
            f"mean: expected {counted(images.channels, 'number')}, one for each channel of the images, "
            f"got {len(network.mean)}"
        )
    ranks = Ranks()
    if folder is not None:
        kept = _Kept(folder, network.fingerprint(images.fingerprint))
        ranks.on_first(kept.take_from_beside)
        if ranks.any(kept.path.exists()):
            return _noted(EmbeddedImages(kept.open(), images, network), f"found in {kept.path}")
    if module is None:
        network, module = network.load()
    print(f"deepclust-ext: embedding {counted(len(images), 'image')} by {network.name} on {device}", file=sys.stderr)
    rows = network.embed(module, images, device=device, num_workers=num_workers, **ranks.inference()).numpy()
    if folder is None:
        return _noted(EmbeddedImages(Rows("rows", rows), images, network), "not kept")
    kept = _Kept(folder, network.fingerprint(images.fingerprint))
    ranks.on_first(lambda: kept.write(rows))
    return _noted(EmbeddedImages(kept.open(), images, network), f"kept in {kept.path}")


class _Kept:
    """The file of rows in a folder."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = folder / f"features-{fingerprint[:16]}.npy", fingerprint

    def take_from_beside(self) -> None:
        """Link or copy the file from a neighboring folder, if one has it and this one does not."""
        if self.path.exists():
            return
        for other in sorted(self.path.absolute().parents[1].glob(f"*/{self.path.name}")):
            with suppress(OSError):  # of another user's, for example
                if fault_of(other, self.fingerprint) is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        os.link(other, self.path)
                    except OSError:
                        with replacing(self.path) as unfinished:
                            shutil.copyfile(other, unfinished)
                    return

    def write(self, rows: NDArray[np.float32]) -> None:
        """Write the file."""
        keep_array(self.path, self.fingerprint, [np.ascontiguousarray(rows)], rows.dtype, rows.shape)

    def open(self) -> Rows:
        """Return the rows, mapped; ValueError if the file is damaged."""
        fault = fault_of(self.path, self.fingerprint)
        if fault is not None:
            raise ValueError(
                f"{self.path}: expected the rows of these images, got {fault}; remove it, and they are embedded again"
            )
        return Rows(self.path.name, Mapped(self.path))


def _noted(features: EmbeddedImages, where: str) -> EmbeddedImages:
    """Return features with a note that names their network and says where they are."""
    network = features.network
    mean, std = (", ".join(f"{value:g}" for value in values or ()) for values in (network.mean, network.std))
    seen = f"{network.size} x {network.size} pixels, {network.interpolation}, mean {mean}, std {std}"
    weights = f"weights {str(network.digest)[:16]}" + (f" of {network.weights}" if network.weights else "")
    features.notes.insert(1, f"rows of {network.name}, {where}: {seen}, {weights}")
    return features
