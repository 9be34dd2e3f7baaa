"""The clusters of images as a table, and as folders of files."""

import csv
import os
import shutil
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from deepclust_ext.data.words import item_of
from deepclust_ext.runs.folder import Run
from deepclust_ext.runs.source import file_of, names_of
from deepclust_ext.training.files import check_writable, named, replacing, write_text

MODES = ("symlink", "copy", "list")


def write_clusters(
    path: Path,
    images: Dataset[Any],
    shares: Tensor,  # (N, K)
) -> None:
    """Write a CSV file: path, cluster, confidence, and second cluster, which is empty if there is only one cluster.

    Raises:
        OSError: If it cannot be written; the message names it.
    """
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("path", "cluster", "confidence", "second"))
    best, order = shares.topk(min(2, shares.shape[1]), dim=1)
    for name, confidence, (cluster, *second) in zip(names_of(images), best[:, 0].tolist(), order.tolist(), strict=True):
        writer.writerow((name, cluster, f"{confidence:.4f}", *(second or ("",))))
    with replacing(path) as unfinished:
        unfinished.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


def check_into(folder: Path, run: Run, data: Sequence[str]) -> None:
    """Require a folder that images can be sorted into, before they are read.

    Args:
        folder: The folder to sort into. It must be empty or not exist, and must not be among the images.
        run: The run whose clusters they are.
        data: Folders and files of other images than the run's.

    Raises:
        FileExistsError: If the folder is not empty.
        NotADirectoryError: If something else is in its way.
        PermissionError: If nothing can be written there.
        ValueError: If the folder is among the images.
    """
    check_writable(folder, "into")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"into: expected an empty folder, got {folder}, which is not; name another or empty it")
    run.check_outside(folder, "into", data)


def check_sorting(images: Dataset[Any], *, mode: str) -> None:
    """Require images that can be sorted by a mode of :func:`sort_files`.

    Raises:
        ValueError: If the mode is unknown, or an image is no file of its own.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    without = next((name for i, name in enumerate(names_of(images)) if file_of(images, i) is None), None)
    if without is not None and mode != "list":
        raise ValueError(
            f"into: expected {item_of(images)}s that are files of their own, got {without}; --mode list takes any"
        )


def sort_files(
    folder: Path,
    images: Dataset[Any],
    shares: Tensor,  # (N, K)
    *,
    mode: str,
) -> None:
    """Sort the files of images into a folder for each cluster, after :func:`check_into` and :func:`check_sorting`.

    Args:
        folder: The folder to sort into.
        images: Images from files, unless ``mode`` is "list".
        shares: Shares of the clusters; the largest decides.
        mode: "symlink" for links to the files, "copy" for copies, "list" for a text file of paths per cluster.

    Raises:
        OSError: If a file cannot be written; names it.
    """
    names, clusters = names_of(images), shares.argmax(1).tolist()
    files = [file_of(images, index) for index in range(len(names))]
    digits = len(str(shares.shape[1] - 1))
    if mode == "list":
        for cluster in range(shares.shape[1]):
            own = [
                str(file.resolve()) if file else name
                for name, file, place in zip(names, files, clusters, strict=True)
                if place == cluster
            ]
            lines = "".join(line + "\n" for line in own)
            write_text(folder / f"cluster-{cluster:0{digits}}.txt", lines)
        return
    for name, file, cluster in zip(_inside(names), files, clusters, strict=True):
        assert file is not None
        target = folder / f"cluster-{cluster:0{digits}}" / name
        with named(f"{target}, of {file}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            if mode == "symlink":
                target.symlink_to(Path(os.path.abspath(file)))  # noqa: PTH100 - a link to a link shall stay one
            else:
                shutil.copy2(file, target)


def _inside(names: list[str]) -> Iterator[str]:
    """Yield each name as a path that stays inside a folder and that no other name has."""
    taken: set[str] = set()
    for name in names:
        parts = [part for part in Path(name).parts if part not in ("/", "..")]
        path = Path(*parts)
        unique, number = path.as_posix(), 2
        while unique in taken:
            unique, number = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix(), number + 1
        taken.add(unique)
        yield unique
