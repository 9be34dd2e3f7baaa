"""The papers' data sets by name, read from their original files, with the papers' protocols.

Which parts are pooled, and which classes and synsets make a set, are facts of the papers and of their authors' code.
"""

import os
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepclust_ext.data.labels import array_classes
from deepclust_ext.data.sources import Images
from deepclust_ext.data.stores import Array, Files, Joined, Mapped, Store, find_images
from deepclust_ext.ops._checks import check_type

IMAGENET_10 = (
    "n02056570",
    "n02085936",
    "n02128757",
    "n02690373",
    "n02692877",
    "n03095699",
    "n04254680",
    "n04285008",
    "n04467665",
    "n07747607",
)
IMAGENET_DOGS = (
    "n02085936",
    "n02086646",
    "n02088238",
    "n02091467",
    "n02097130",
    "n02099601",
    "n02101388",
    "n02101556",
    "n02102177",
    "n02105056",
    "n02105412",
    "n02105855",
    "n02107142",
    "n02110958",
    "n02112137",
)
_TINY_CLASSES = 200

Loaded = tuple[Store, list[str] | None, list[tuple[str, str]]]  # classes, and what was left out and why


def load_dataset(name: str, root: str | Path, **settings: Any) -> Images:
    """Return a data set of the papers with its classes, from its original files; nothing is downloaded.

    ==================== ===================================================================== ========
    name                 files below ``root``                                                  images
    ==================== ===================================================================== ========
    cifar10              ``cifar-10-batches-py`` or ``-bin``, train and test                    60,000
    cifar20, cifar100    ``cifar-100-python`` or ``-binary``, train and test                    60,000
    stl10                ``stl10_binary``, train and test                                       13,000
    stl10-unlabelled     ``stl10_binary/unlabeled_X.bin``                                      100,000
    imagenet10           ten synset folders of ILSVRC-2012's training images                    13,000
    imagenet-dogs        fifteen such folders                                                   19,500
    tiny-imagenet        ``train`` of tiny-imagenet-200                                        100,000
    rsod, uc-merced,     a folder for each class, anywhere below ``root``                          all
    siri-whu, aid, d0-40
    chaoyang             the same, train and test                                                  all
    ==================== ===================================================================== ========

    Args:
        name: Name of the data set.
        root: The folder that holds it, or the data set's own folder.
        **settings: See :class:`deepclust_ext.data.Images`.

    Raises:
        FileNotFoundError: If a file is missing.
        TypeError: If an argument has the wrong type.
        ValueError: If the name is unknown, or the files hold something else.
    """
    check_type(name, "name", str, "text")
    if name not in DATASETS:
        raise ValueError(f"name: expected one of {', '.join(DATASETS)}, got {name!r}")
    root = Path(check_type(root, "root", str | os.PathLike, "a path"))
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected the folder of {name}, found nothing")
    store, classes, skipped = DATASETS[name](root)
    return Images(store, classes=classes, skipped=skipped, **settings)


def _inside(root: Path, *names: str) -> Path:
    """Return the first of these folders that is there, or the root itself if it has such a name."""
    for name in names:
        if root.name == name:
            return root
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"{root}: expected the folder {' or '.join(names)}, found none")


def _file(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of the data set, found nothing")
    return path


def _cifar(root: Path, folders: tuple[str, str], files: Sequence[tuple[str, str]], key: str, column: int) -> Loaded:
    """Read CIFAR's Python or binary files: rows of labels and 3072 values, red, green and blue planes of 32 x 32."""
    folder = _inside(root, *folders)
    stores: list[Store] = []
    classes: list[str] = []
    for python, binary in files:
        if (folder / python).is_file():
            batch = _read_arrays(folder / python)
            values, labels = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[key.encode()])
        else:
            path = _file(folder / binary)
            columns = 2 if "100" in folder.name else 1
            rows = np.fromfile(path, np.uint8)
            if not rows.size or rows.size % (columns + 3072):
                raise ValueError(f"{path}: expected rows of {columns + 3072} bytes, got {rows.size} bytes")
            rows = rows.reshape(-1, columns + 3072)
            values, labels = rows[:, columns:], rows[:, column]
        if values.ndim != 2 or values.shape[1] != 3072 or labels.shape != values.shape[:1]:
            raise ValueError(f"{folder / python}: expected rows of 3072 values with a label, got {values.shape}")
        stores.append(Array(values.reshape(-1, 3, 32, 32), Path(python).name))
        classes += array_classes(labels, len(values))
    return Joined(stores), classes, []


class _Arrays(pickle.Unpickler):
    """Reads arrays, numbers and strings, and refuses all else, because a pickle may name any function to call."""

    ALLOWED = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return what the file names, if it is a part of an array."""
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"expected arrays and numbers alone, got {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_arrays(path: Path) -> dict[bytes, Any]:
    try:
        with path.open("rb") as file:
            read: dict[bytes, Any] = _Arrays(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path}: no batch of CIFAR: {error}") from error
    return read


def _cifar10(root: Path) -> Loaded:
    names = [*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]
    files = [(name, f"{name}.bin") for name in names]
    return _cifar(root, ("cifar-10-batches-py", "cifar-10-batches-bin"), files, "labels", 0)


def _cifar100(key: str, column: int) -> Callable[[Path], Loaded]:
    def load(root: Path) -> Loaded:
        files = [("train", "train.bin"), ("test", "test.bin")]
        return _cifar(root, ("cifar-100-python", "cifar-100-binary"), files, key, column)

    return load


def _stl_images(path: Path) -> Array:
    return Array(Mapped(_file(path), _map_stl), path.name)


def _map_stl(path: Path) -> NDArray[np.uint8]:
    """Return the images of a file (N, 3, 96, 96), each channel column after column."""
    values: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")
    if values.size % (3 * 96 * 96):
        raise ValueError(f"{path}: expected images of {3 * 96 * 96} bytes, got {values.size} bytes")
    return values.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)


def _stl10(root: Path) -> Loaded:
    folder = _inside(root, "stl10_binary")
    stores = [_stl_images(folder / f"{part}_X.bin") for part in ("train", "test")]
    classes: list[str] = []
    for part, store in zip(("train", "test"), stores, strict=True):
        classes += array_classes(np.fromfile(_file(folder / f"{part}_y.bin"), np.uint8), len(store.names))
    return Joined(stores), classes, []


def _stl10_unlabelled(root: Path) -> Loaded:
    return _stl_images(_inside(root, "stl10_binary") / "unlabeled_X.bin"), None, []


def _synsets(synsets: Sequence[str]) -> Callable[[Path], Loaded]:
    def load(root: Path) -> Loaded:
        folder = root / "train" if (root / "train").is_dir() else root
        stanford = [path.name for path in folder.glob("n*-*") if re.fullmatch(r"n\d{8}-\w.*", path.name)]
        if stanford or (folder / "Images").is_dir():
            raise ValueError(
                f"{folder}: expected synset folders of ILSVRC-2012's training images, such as {synsets[0]}; this looks "
                "like Stanford Dogs, whose classes and images are others"
            )
        if missing := [name for name in synsets if not (folder / name).is_dir()]:
            raise FileNotFoundError(f"{folder}: expected {len(synsets)} synset folders, found no {', '.join(missing)}")
        return _by_parent([folder / name for name in synsets], folder, 0)

    return load


def _tiny_imagenet(root: Path) -> Loaded:
    folder = root / "train" if (root / "train").is_dir() else _inside(root, "tiny-imagenet-200") / "train"
    store, classes, skipped = _by_parent([folder], folder, 0)
    if (count := len(set(classes or ()))) != _TINY_CLASSES:
        raise ValueError(f"{folder}: expected {_TINY_CLASSES} synset folders, found {count}")
    return store, classes, skipped


def _class_folders(root: Path) -> Loaded:
    store, classes, skipped = _by_parent([root], root, -2)
    if classes and len(set(classes)) == 1:
        raise ValueError(f"{root}: expected a folder of images for each class, found {classes[0]} alone")
    return store, classes, skipped


def _by_parent(folders: Sequence[Path], root: Path, part: int) -> Loaded:
    """Return the files in folders below a root, and as each one's class a part of its path from there."""
    paths: list[Path] = []
    skipped: list[tuple[str, str]] = []
    for folder in folders:
        found, others = find_images(folder)
        paths += found
        skipped += [((folder / name).relative_to(root).as_posix(), reason) for name, reason in others]
    if loose := [path for path in paths if path.parent == root]:
        raise ValueError(f"{loose[0]}: expected every image in a folder of its class")
    names = [path.relative_to(root) for path in paths]
    return Files(paths, [name.as_posix() for name in names]), [name.parts[part] for name in names], skipped


DATASETS: dict[str, Callable[[Path], Loaded]] = {
    "cifar10": _cifar10,
    "cifar20": _cifar100("coarse_labels", 0),
    "cifar100": _cifar100("fine_labels", 1),
    "stl10": _stl10,
    "stl10-unlabelled": _stl10_unlabelled,
    "imagenet10": _synsets(IMAGENET_10),
    "imagenet-dogs": _synsets(IMAGENET_DOGS),
    "tiny-imagenet": _tiny_imagenet,
    **dict.fromkeys(("rsod", "uc-merced", "siri-whu", "aid", "d0-40", "chaoyang"), _class_folders),
}
