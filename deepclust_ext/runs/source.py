"""Where the images or features of a run are, and how they are read, so that they can be read in the same way again."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from deepclust_ext.data import DATASETS, Digits, Features, Images, load_dataset, load_features, load_images
from deepclust_ext.data.features import are_features
from deepclust_ext.data.labels import has_labels
from deepclust_ext.data.seen import PixelRange
from deepclust_ext.inference.pretrained import Pretrained
from deepclust_ext.runs.embedded import embed_images

#: The data set of the demo, which lies in no folder.
BUNDLED = "digits"
#: What is wrong with scores of images without labels.
UNLABELLED = "score_every: expected none without labels, got {}; labels are 'folders', 'own' or a CSV file"


#: Tables that are searched for labels at most, the outermost first: some folders have one for each image.
LOOKED_INTO = 10


@dataclass(frozen=True)
class Source:
    """Images on disk, or a data set by name.

    Attributes:
        data: Folders, files and lists, see :func:`deepclust_ext.data.load_images`; or files of features, see
            :func:`deepclust_ext.data.load_features`; or the one name of a data set.
        root: The folder that holds a data set given by name.
        size: Side of the square that images are resized to; None for no resizing.
        scale: "type" or "percentile", see :class:`deepclust_ext.data.Images`.
        labels: "folders", "own" for those in an .npz file, the key of one of its arrays, or the path of a CSV file; for
            scores alone. A data set given by name has its own labels, for "own" and for None.
        network: The frozen network whose rows are clustered instead of the images; None for the images themselves.
        range: The range that "percentile" has measured before, on these images or on those of a run; None to measure
            it.

    Raises:
        ValueError: If a name is empty.
    """

    data: tuple[str, ...]
    root: str | None = None
    size: int | None = None
    scale: str = "type"
    labels: str | None = None
    network: Pretrained | None = None
    range: PixelRange | None = None

    def __post_init__(self) -> None:
        if "" in self.data:  # as a variable of a shell that nobody has set; it would be the working folder
            raise ValueError("data: expected folders or files, got an empty name")

    @property
    def name(self) -> str:
        """Name of the images: that of the data set, or of the first folder or file."""
        return self.data[0] if self.is_named else Path(self.data[0]).resolve().stem or "images"

    @property
    def is_named(self) -> bool:
        """Whether this is a data set given by name."""
        return self.root is not None or (self.data == (BUNDLED,) and not Path(BUNDLED).exists())

    @property
    def is_bundled(self) -> bool:
        """Whether this is the data set of the demo."""
        return self.is_named and self.data == (BUNDLED,)

    @property
    def holds_features(self) -> bool:
        """Whether these are rows of features, of a network or by the files' headers; ValueError if only some are."""
        return self.network is not None or self._are_features

    @property
    def is_labelled(self) -> bool:
        """Whether there are labels, as far as can be told before the images are opened."""
        return self.labels is not None or self.is_named

    def resolved(self) -> "Source":
        """Return the same with absolute paths, for whoever reads it from another folder."""
        root = None if self.root is None else str(Path(self.root).resolve())
        data = self.data if self.is_named else tuple(str(Path(path).resolve()) for path in self.data)
        labels = self.labels
        if labels not in (None, "folders", "own") and (Path(str(labels)).is_file() or not data[0].endswith(".npz")):
            labels = str(Path(str(labels)).resolve())
        network = None if self.network is None else self.network.resolved()
        return replace(self, data=data, root=root, labels=labels, network=network)

    def open(self, *, device: torch.device | str = "cpu", num_workers: int = 0, **settings: Any) -> Dataset[Any]:
        """Return the images.

        Args:
            device: Where a network embeds them, if there is one and the rows are not there yet.
            num_workers: Processes that load images for it.
            **settings: Other arguments of :class:`deepclust_ext.data.Images`. Features ignore them, but rows of a
                network are kept in the ``cache_folder``.

        Raises:
            FileNotFoundError: If there is no such folder or file.
            ValueError: If there is no image, or something does not fit.
        """
        if not self.data:
            raise ValueError("data: expected a folder of images, got none")
        if self.network is not None:
            self._check_images()
            plain, folder = replace(self, network=None), settings.get("cache_folder")
            return embed_images(
                lambda channels: cast(Images, plain.open(cache="none", channels=channels)),
                self.network,
                folder=folder,
                device=device,
                num_workers=num_workers,
            )
        if self._are_features:
            if self.scale != "type":
                raise ValueError(
                    f"scale: expected 'type' for features, which have no black and white, got {self.scale!r}"
                )
            return load_features(*self.data, labels=self.labels)
        scale = self.range or self.scale
        if not self.is_named:
            settings |= {"size": self.size, "scale": scale, "labels": self.labels}
            return load_images(*self.data, **settings)
        if len(self.data) > 1:
            raise ValueError(f"data: expected one name where there is a root, got {', '.join(self.data)}")
        if self.labels not in (None, "own"):
            raise ValueError(f"labels: expected 'own' or none for {self.data[0]}, got {self.labels!r}")
        if self.is_bundled:
            return Digits()
        return load_dataset(self.data[0], str(self.root), size=self.size, scale=scale, **settings)

    @property
    def _are_features(self) -> bool:
        return not self.is_named and are_features(self.data)

    def _check_images(self) -> None:
        """Require images that a network can embed, as far as can be told before they are opened."""
        if self._are_features:
            raise ValueError(f"backbone: expected images, got features, which need no network, in {self.data[0]}")
        if self.is_bundled:
            raise ValueError(f"backbone: expected a folder or files of images, got the data set {BUNDLED}")


def check_root(source: Source) -> None:
    """Require the folder of a data set that is given by name; FileNotFoundError otherwise."""
    if source.root is None and source.data and source.data[0] in DATASETS and not Path(source.data[0]).exists():
        name = source.data[0]
        raise FileNotFoundError(f"root: expected the folder that holds the files of the data set {name}, got none")


def check_labels(source: Source, score_every: int | None) -> None:
    """Require labels for scores, as far as can be told before the images are opened; ValueError otherwise."""
    if score_every and not source.is_labelled:
        raise ValueError(UNLABELLED.format(score_every))


def hint_of_labels(source: Source, images: Dataset[Any]) -> list[str]:
    """Return a line for the user about a table of labels in the folder of the images, if no labels were named."""
    if source.labels is not None or len(source.data) != 1 or not Path(source.data[0]).is_dir():
        return []
    tables = [name for name, _ in getattr(images, "skipped", ()) if name.endswith(".csv")]
    for name in sorted(tables, key=lambda name: name.count("/"))[:LOOKED_INTO]:
        path = Path(source.data[0], name)
        if has_labels(path):
            return [f"{name} has the columns path and label: --labels {shlex.quote(str(path))} takes them for scores"]
    return []


def names_of(images: Dataset[Any]) -> list[str]:
    """Return the name of each image of a data set, or its index if the data set has no names."""
    names = getattr(images, "names", None)
    return list(names) if names is not None else [f"image {index}" for index in range(len(images))]  # type: ignore[arg-type]


def labels_of(images: Dataset[Any]) -> tuple[Any, list[str] | None]:
    """Return the labels (N,) of a data set and the names of its classes, each None if there are none."""
    labels, classes = getattr(images, "labels", None), getattr(images, "classes", None)
    return labels, None if classes is None else list(classes)


def file_of(images: Dataset[Any], index: int) -> Path | None:
    """Return the file of an image, or None if it has no file of its own."""
    return images.path(index) if isinstance(images, Images | Features) else None
