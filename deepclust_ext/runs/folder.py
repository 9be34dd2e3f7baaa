"""What a run's folder holds, and how to open one."""

import json
import os
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from deepclust_ext import recipes
from deepclust_ext.data import Features
from deepclust_ext.data.seen import PixelRange
from deepclust_ext.data.stores import is_read, map_array
from deepclust_ext.distributed import num_ranks
from deepclust_ext.inference import Trained, device_of, map_images
from deepclust_ext.inference.pretrained import Pretrained
from deepclust_ext.methods import ClusterHeadMethod, ClusteringMethod
from deepclust_ext.ops._checks import counted
from deepclust_ext.recipes import Recipe
from deepclust_ext.recipes.build import make_method, make_test_view
from deepclust_ext.runs.source import Source
from deepclust_ext.training.files import (
    CENTERS_NAME,
    CHECKPOINT_NAME,
    CLUSTERS_NAME,
    FIGURE_NAME,
    PREVIOUS_NAME,
    RECIPE_NAME,
    RECORD_NAME,
    REPORT_NAME,
    RunFolder,
    is_checkpoint,
)
from deepclust_ext.training.ranks import Ranks

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group

BOARD_NAME = "tensorboard"

#: What a run makes of its last weights; a run that goes on makes them anew.
RESULTS = (CENTERS_NAME, CLUSTERS_NAME, REPORT_NAME, FIGURE_NAME)


@dataclass(frozen=True)
class Run:
    """A run, read from its folder.

    Attributes:
        path: The folder.
        recipe: All settings except the seed.
        method: The method of the last checkpoint.
        history: One record of mean terms per epoch.
        record: Content of ``run.json``.
        centers: (K, D), which a method without a cluster head needs; None if the run has not ended.
    """

    path: Path
    recipe: Recipe
    method: ClusteringMethod
    history: list[dict[str, float]]
    record: dict[str, Any]
    centers: torch.Tensor | None = None

    @cached_property
    def trained(self) -> Trained:
        """The method as a map from images to rows and shares of clusters.

        If the run has not ended, centers that are missing are those of its images' current rows.
        """
        centers = self.centers
        if self._lacks_centers:
            images = self._opened[0] if self._opened else self.images(say_notes=False)
            shared = num_ranks() > 1
            seed = self.record["config"]["seed"]
            centers, _ = fit_centers(self.method, images, self.recipe, seed=seed, gather_distributed=shared)
            self._opened.clear()
        return Trained(self.method, make_test_view(self.recipe), centers)

    @cached_property
    def _opened(self) -> list[Dataset[Any]]:
        """The run's own images between their opening and the search for centers, so that they are opened once."""
        return []

    @property
    def _lacks_centers(self) -> bool:
        return self.centers is None and not isinstance(self.method, ClusterHeadMethod)

    @property
    def source(self) -> Source:
        """Where the run's images are.

        Raises:
            ValueError: If they were only in memory.
        """
        return recorded_source(self.path, self.record)

    @property
    def holds_features(self) -> bool:
        """Whether the run is of rows of features, which are images of one pixel."""
        return self.recipe.data.size == 1

    @property
    def item(self) -> str:
        """Name of an item in messages: "image", or "row" for a file of features."""
        return "row" if self.holds_features and self._network is None else "image"

    @property
    def _network(self) -> Pretrained | None:
        """The frozen network that has embedded the run's images, or None."""
        return None if self.record.get("source") is None else self.source.network

    def check_outside(self, place: Path, option: str, data: Sequence[str] = ()) -> None:
        """Require a place for pictures that is not among the images of the run, or others that are read.

        Args:
            place: A folder to write to, which may be missing yet.
            option: What it was given as, for messages.
            data: Folders and files of the other images.

        Raises:
            ValueError: If the images would be others, when they are read again.
        """
        own = () if self.record.get("source") is None or self.source.is_named else self.source.data
        for source in (*data, *own):
            if Path(source).is_dir() and is_read(Path(source), place):
                raise ValueError(
                    f"{option}: expected a folder outside of {source}, whose images would include what it gets, "
                    f"got {place}"
                )

    def images(
        self, *data: str | os.PathLike[str], labels: str | None = None, say_notes: bool = True, **settings: Any
    ) -> Dataset[Any]:
        """Return the run's own images, or others that are read in the same way.

        Args:
            *data: Folders and files; none for the run's own images.
            labels: See :class:`Source`; None for the run's own labels if these are its images.
            say_notes: Whether to print what was chosen or found while reading.
            **settings: Other arguments of :class:`deepclust_ext.data.Images`.

        Raises:
            FileNotFoundError: If there is no such folder or file.
            ValueError: If there is no image, or the images have other channels than the run's.
        """
        if data:
            own = Source(()) if self.record.get("source") is None else self.source
            if own.scale == "percentile" and own.range is None:
                raise ValueError(
                    f"data: expected none, since {self.path / RECORD_NAME} lacks the range of the run's images, which "
                    f"others need, got {data[0]}"
                )
            source = replace(own, data=tuple(os.fspath(path) for path in data), root=None, labels=labels, network=None)
            if source.holds_features:  # as rows of the network are that `embed` has written
                source = replace(source, scale="type", range=None)
            else:
                source = replace(source, network=self._network)
        else:
            source = self.source
            if labels is not None and labels != source.labels:
                source = replace(source, labels=labels)
        # Gray images stand for all three colors where the run's were in color.
        if self.recipe.data.channels == 3:
            settings["channels"] = 3
        if not data and source.network is not None:
            settings.setdefault("cache_folder", self.path)
        settings["device"] = device_of(self.method)
        images = source.open(**settings) if data else own_images(self.path, source, **settings)
        for note in getattr(images, "notes", ())[1:] if say_notes else ():  # the first is said on opening
            print(f"deepclust-ext: {note}", file=sys.stderr)
        count = len(images)  # type: ignore[arg-type]
        if not data and count != self.record.get("images", count):
            print(
                f"deepclust-ext: warning: {self.path} was trained on {counted(self.record['images'], self.item)}, and "
                f"there are {count} now",
                file=sys.stderr,
            )
        channels, expected = getattr(images, "channels", None), self.recipe.data.channels
        if isinstance(images, Features) != self.holds_features:
            kinds = ("features", "images") if self.holds_features else ("images", "features")
            cure = "; embed --backbone makes rows of images, see docs/features.md" if self.holds_features else ""
            raise ValueError(f"data: expected {kinds[0]}, as {self.path} was trained on, got {kinds[1]}{cure}")
        if isinstance(images, Features) and channels != expected:
            wide = counted(expected, "feature")
            raise ValueError(f"data: expected rows of {wide}, as {self.path} has them, got {channels}")
        if channels not in (None, expected):
            raise ValueError(
                f"data: expected images of {counted(expected, 'channel')}, as {self.path} has them, got {channels}; "
                "convert them first, to gray by Pillow's convert('L')"
            )
        if not data and self._lacks_centers:
            self._opened[:] = [images]
        return images


def open_run(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu", weights: str | os.PathLike[str] | None = None
) -> Run:
    """Return the run that a folder holds; nothing that the folder holds is executed.

    Args:
        path: The folder.
        device: Where the method computes.
        weights: New place of the weights of the run's frozen network, if the file has moved.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no run.
        ValueError: If a file in it is damaged, or weights are given and the run has no network that reads weights.
    """
    path = Path(path)
    if not (path / RECIPE_NAME).is_file():
        found = "nothing" if not path.exists() else f"a folder without {RECIPE_NAME}" if path.is_dir() else "a file"
        raise FileNotFoundError(f"run: expected the folder of a run, such as 'train' makes, at {path}, got {found}")
    recipe, record = recipes.load(path / RECIPE_NAME), read_record(path)
    if weights is not None:
        move_weights(path, record, weights)
    state = RunFolder(path).load()
    with torch.random.fork_rng(devices=()):  # first weights are drawn, and then replaced
        method = make_method(recipe)
    try:
        method.load_state_dict(state["method"])
    except RuntimeError as error:
        found = textwrap.shorten(str(error), 300, placeholder=" ...")  # it names all weights
        raise ValueError(f"{path}: expected weights of the network in {RECIPE_NAME}, got others: {found}") from error
    centers = None if isinstance(method, ClusterHeadMethod) else _centers(path, method)
    return Run(path, recipe, method.to(device), state["history"], record, centers)


def move_weights(path: Path, record: dict[str, Any], weights: str | os.PathLike[str]) -> None:
    """Set another file for the weights of the network in a record.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the run has no network that reads some, or these are others.
    """
    network, weights = (record.get("source") or {}).get("network") or {}, os.fspath(weights)
    if network.get("weights") is None:
        raise ValueError(f"weights: expected none, since {path} has no frozen network from a file, got {weights!r}")
    if not weights:
        raise ValueError("weights: expected a file, got an empty name")
    network["weights"] = weights
    Pretrained.of(network).load()  # compares them, which rows that were kept would spare


def load(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Trained:
    """Return the trained method of a run's folder; it maps images to rows and shares, see :func:`open_run`."""
    return open_run(path, device=device).trained


def recorded_source(path: Path, record: Mapping[str, Any]) -> Source:
    """Return where a run's images are, from its record; ValueError if they were only in memory."""
    stored = record.get("source")
    if stored is None:
        raise ValueError(f"data: expected images, since {path} was given its own in memory, got none")
    try:
        network = stored.get("network")
        pretrained = None if network is None else Pretrained.of(network)
        measured = None if stored.get("range") is None else PixelRange(**stored["range"])
        return Source(**stored | {"data": tuple(stored["data"]), "network": pretrained, "range": measured})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / RECORD_NAME}: expected a source of images, got {stored}") from error


def read_record(path: Path) -> dict[str, Any]:
    """Return what the run.json of a folder holds.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"run: expected the folder of a run at {path}, got nothing")
    if not (path / RECORD_NAME).is_file():
        raise FileNotFoundError(f"run: expected {RECORD_NAME} in {path}, which says where the images lie, got none")
    try:
        record = json.loads((path / RECORD_NAME).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path / RECORD_NAME}: expected JSON, got: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ValueError(f"{path / RECORD_NAME}: expected the record of a run, got something else")
    return record


def holds_run(path: Path) -> bool:
    """Return whether a folder holds a run: its record, or a checkpoint."""
    try:
        return "status" in read_record(path)
    except (OSError, ValueError):
        return any(is_checkpoint(path / name) for name in (CHECKPOINT_NAME, PREVIOUS_NAME))


def resume_command(path: Path) -> str:
    """Return the command that goes on with the run in a folder, as a shell takes it."""
    return f"deepclust-ext train --resume --out {shlex.quote(str(path))}"


def own_images(path: Path, source: Source, **settings: Any) -> Dataset[Any]:
    """Return the images of the run in a folder; if they have moved, the error says how to tell the run."""
    try:
        return source.open(**settings)
    except FileNotFoundError as error:
        places = source.data if source.root is None else (source.root,)
        if all(Path(place).exists() for place in places):  # something else is missing
            raise
        data = "DATA" if source.root is None else f"{source.data[0]} --root FOLDER"
        raise FileNotFoundError(
            f"{error}; if the images of {path} have moved: {resume_command(path)} {data}, by which it takes note of "
            "where they are"
        ) from error


def fit_centers(
    method: ClusteringMethod,
    images: Dataset[Any],
    recipe: Recipe,
    *,
    seed: int,
    num_workers: int = 0,
    gather_distributed: bool = False,
    process_group: "Group" = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the centers (K, D) of the final spherical k-means of a method without a cluster head, on the CPU.

    Also return the rows (N, D) of the images, on the method's device. Ranks share the images, and all get the results.
    """
    (rows,) = map_images(
        lambda views: (method.embed(views),),
        images,
        test_view=make_test_view(recipe),
        batch_size=recipe.batch_size,
        num_workers=num_workers,
        device=device_of(method),
        progress="embedding",
        gather_distributed=gather_distributed,
        process_group=process_group,
    )
    ranks = Ranks(gather_distributed, process_group)
    kmeans = recipe.kmeans.spherical(recipe.data.num_clusters, seed, process_group=ranks.group)
    centers: torch.Tensor = kmeans.fit(rows[ranks.part(len(rows))]).cluster_centers_
    return centers.cpu(), rows


def _centers(path: Path, method: ClusteringMethod) -> torch.Tensor | None:
    """Return the centers that the run has written, or None if it has not ended."""
    if not (path / CENTERS_NAME).is_file():
        return None
    centers = torch.from_numpy(np.array(map_array(path / CENTERS_NAME)))
    if centers.dim() != 2 or len(centers) != method.num_clusters or not centers.isfinite().all():
        raise ValueError(
            f"{path / CENTERS_NAME}: expected {method.num_clusters} finite rows, got shape {tuple(centers.shape)}"
        )
    return centers
