"""A run as one HTML file that works offline: what the clusters hold, a map of all images, and the run's curves."""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.utils.data import Dataset

import deepclust_ext
from deepclust_ext.data.words import item_of
from deepclust_ext.evaluation.colors import LIGHTNESS, palette
from deepclust_ext.evaluation.embedding_map import embedding_map
from deepclust_ext.evaluation.galleries import Galleries, Indices, make_galleries
from deepclust_ext.evaluation.kept import keep_images, positions
from deepclust_ext.evaluation.metrics import Labels
from deepclust_ext.evaluation.scores import score_clusters
from deepclust_ext.evaluation.text import as_text
from deepclust_ext.ops._checks import counted

#: Points of the map at most.
MAP_POINTS = 100_000
#: Rows and columns of the confusion matrix at most, and files that are listed as skipped.
CONFUSION_SIDE, SKIPPED_LISTED = 60, 200
_CLASSES_LISTED = 3  # of a cluster
_GRID = 10_000  # of the map's points
_TEMPLATE = Path(__file__).with_name("report.html")


def report_html(
    images: Dataset[Any],
    rows: Tensor,  # (N, D) unit
    shares: Tensor,  # (N, K)
    *,
    title: str,
    recipe: str = "",
    history: Sequence[Mapping[str, float]] = (),
    axes: Mapping[str, Sequence[str]] | None = None,
    labels: Labels | None = None,  # (N,)
    classes: Sequence[str] | None = None,
    scores: Mapping[str, Any] | None = None,
) -> str:
    """Return an HTML page, as ASCII text, that shows a clustering; equal input gives equal text.

    It shows for every cluster its size and confidence, the images at its middle (largest cosine with the mean of its
    rows), at its edge (smallest cosine), and the least certain ones (smallest difference of the two largest shares). A
    click on an image shows its nearest neighbors by cosine. A map of the rows is colored by cluster or label. The page
    also has the curves of the run, scores and confusion matrix if labels are known, and the recipe.

    With many images, pictures are limited to 13 million characters: those of the galleries, their neighbors, and then
    the most typical images. The page says what it leaves out. Names are always shown as text, never as HTML.

    Args:
        images: Map-style, of images (C, H, W) of any size and type, or tuples that begin with one. If the data set has
            the attributes ``names``, ``skipped`` and ``notes`` of :class:`deepclust_ext.data.Images`, they are shown.
        rows: The method's rows, floating and finite.
        shares: Shares of the clusters; an image's cluster is its largest share.
        title: Title of the page.
        recipe: The recipe as text.
        history: One record of mean terms for each epoch.
        axes: Which terms share an axis, by what it shows; by default each has its own.
        labels: True classes, as integers or names.
        classes: Names of the integers from 0 on.
        scores: Numbers by name, or as in :class:`deepclust_ext.evaluation.ClusterScores`; by default those of the
            clusters against the labels, if there are any.

    Raises:
        TypeError: If an item is no image.
        ValueError: If there is no image, a shape does not fit or a number is not finite, or an image cannot be read.
    """
    count = len(cast(Sized, images))
    item = item_of(images)
    rows, shares = _checked("rows", rows, count, item), _checked("shares", shares, count, item)
    galleries = make_galleries(rows, shares)
    names = getattr(images, "names", None) or [f"{item} {place}" for place in range(count)]
    true, class_names = _numbered(labels, classes, count, item)
    kept = keep_images(images, names, rows, galleries)
    points, note = embedding_map(rows, item)
    page = {"names": kept.names, "pictures": kept.pictures, "exact": kept.exact}
    page |= {"neighbors": kept.neighbors, "cosines": kept.cosines, "notes": [f"Map: {note}.", *kept.notes]}
    page |= _points(kept.places, points, galleries, true)
    table = np.zeros((len(class_names), shares.shape[1]), np.int64)
    if true is not None:
        np.add.at(table, (true, galleries.clusters), 1)
        if scores is None:
            scores = asdict(score_clusters(true, galleries.clusters, rows, shares.shape[1]))
    page |= {"clusters": _clusters(kept.places, galleries, table)}
    page |= _classes(table, class_names)
    skipped = list(getattr(images, "skipped", ()))
    page |= {
        "title": as_text(title),
        "item": item,
        "version": deepclust_ext.__version__,
        "recipe": "\n".join(as_text(line.expandtabs()) for line in recipe.splitlines()),
        "curves": _curves(history, axes),
        "scores": {as_text(name): float(value) for name, value in (scores or {}).items() if _is_number(value)},
        "skipped": [[as_text(name), as_text(reason)] for name, reason in skipped[:SKIPPED_LISTED]],
        "numSkipped": len(skipped),
        "dataNotes": [as_text(note) for note in getattr(images, "notes", ())],
    }
    return _filled(page)


def _filled(page: Mapping[str, Any]) -> str:
    """Return the template with the data as JSON that cannot end its element, and with a policy that allows one script.

    The policy allows only the template's script, by its hash, and no address, so nothing in the data can run.
    """
    template = _TEMPLATE.read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(page, allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # which in JSON stand within texts alone
        data = data.replace(character, f"\\u{ord(character):04x}")
    item = page["item"]
    parts = {"TITLE": html.escape(page["title"]), "DIGEST": f"sha256-{digest}", "DATA": data}
    parts |= {"ITEM": item, "ITEMS": f"{item.capitalize()}s"}
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: parts[found[1]], template)


def _points(kept: Indices, points: NDArray[np.float64], galleries: Galleries, true: Indices | None) -> dict[str, Any]:
    """Return the facts about every image on the map, those with pictures first and in their order."""
    others = np.setdiff1d(np.arange(len(points)), kept)
    if len(points) > MAP_POINTS:
        drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(0), device="cpu").numpy()
        others = np.sort(others[drawn[: max(0, MAP_POINTS - len(kept))]])
    order = np.concatenate([kept, others])
    across, down = np.rint(points[order].T * _GRID).astype(int).tolist()
    return {
        "count": len(points),
        "x": across,
        "y": down,
        "cluster": galleries.clusters[order].tolist(),
        "second": galleries.seconds[order[: len(kept)]].tolist(),
        "confidence": np.rint(galleries.confidences[order].astype(np.float64) * 1000).astype(int).tolist(),
        "label": None if true is None else true[order].tolist(),
    }


def _clusters(
    kept: Indices,  # (M,)
    galleries: Galleries,
    table: Indices,  # (classes, K)
) -> list[dict[str, Any]]:
    """Return size, confidence, largest classes and galleries of every cluster, in places among the kept images."""
    number = positions(kept, len(galleries.clusters))
    sizes = np.bincount(galleries.clusters, minlength=table.shape[1])
    sums = np.bincount(galleries.clusters, galleries.confidences.astype(np.float64), table.shape[1])
    clusters = []
    for cluster, size in enumerate(sizes.tolist()):
        shown = {
            "middle": galleries.middle[cluster],
            "edge": galleries.edge[cluster],
            "uncertain": galleries.uncertain[cluster],
        }
        largest = np.argsort(-table[:, cluster], kind="stable")[:_CLASSES_LISTED].tolist()
        clusters.append(
            {
                "size": size,
                "confidence": float(sums[cluster] / size) if size else None,
                "classes": [[label, int(table[label, cluster])] for label in largest if table[label, cluster]],
                **{name: [place for place in number[found].tolist() if place >= 0] for name, found in shown.items()},
            }
        )
    return clusters


def _classes(
    table: Indices,  # (classes, K)
    names: Sequence[str],
) -> dict[str, Any]:
    """Return classes and the confusion matrix, each cluster below the class that it matches, and all colors.

    A class has the color of the cluster that it matches, so equal colors on both maps mean agreement.
    """
    num_classes, num_clusters = table.shape
    rows, columns = linear_sum_assignment(table, maximize=True)
    row_order = np.append(rows, np.setdiff1d(np.arange(num_classes), rows)).astype(np.int64)
    column_order = np.append(columns, np.setdiff1d(np.arange(num_clusters), columns)).astype(np.int64)
    colors = np.empty(num_classes, np.int64)
    colors[row_order] = np.append(columns, num_clusters + np.arange(num_classes - len(rows)))
    top, left = row_order[:CONFUSION_SIDE], column_order[:CONFUSION_SIDE]
    totals = table.sum(axis=1)
    confusion = {
        "rows": top.tolist(),
        "columns": left.tolist(),
        "counts": table[np.ix_(top, left)].tolist(),
        "totals": totals[top].tolist(),
    }
    count = num_clusters + num_classes - len(rows)
    return {
        "classes": [as_text(name) for name in names],
        "classTotals": totals.tolist(),
        "classColors": colors.tolist(),
        "colors": {theme: palette(count, theme) for theme in LIGHTNESS},
        "confusion": confusion if num_classes else None,
    }


def _curves(history: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    """Return epochs, and for every axis the terms that the history has; None where a term is missing or not finite."""
    found = {name: None for record in history for name, value in record.items() if _is_number(value)}
    terms = [name for name in found if name not in ("epoch", "lr", "seconds")]
    groups = {name: (name,) for name in terms} if axes is None else axes
    panels = []
    for title, names in groups.items():
        lines = [
            {"name": as_text(name), "values": [_finite(record.get(name)) for record in history]}
            for name in names
            if name in found
        ]
        if lines:
            panels.append({"title": as_text(title), "lines": lines})
    epochs = [_finite(record.get("epoch", place + 1)) for place, record in enumerate(history)]
    return {"epochs": epochs, "panels": panels}


def _numbered(
    labels: Labels | None, classes: Sequence[str] | None, count: int, item: str
) -> tuple[Indices | None, list[str]]:
    """Return labels (N,) as numbers from 0 on, and what they are called."""
    if labels is None:
        return None, []
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != (count,):
        raise ValueError(f"labels: expected shape ({count},), one for each {item}, got {array.shape}")
    found, numbers = np.unique(array, return_inverse=True)
    if classes is None:
        return numbers.astype(np.int64), [str(name) for name in found.tolist()]
    if array.dtype.kind not in "iu" or found[0] < 0 or found[-1] >= len(classes):
        ends = f"{found[0]} to {found[-1]}"
        raise ValueError(f"labels: expected integers from 0 to {len(classes) - 1}, places in classes, got {ends}")
    return array.astype(np.int64), [str(name) for name in classes]


def _checked(name: str, values: Tensor, count: int, item: str) -> Tensor:
    values = values.detach().cpu().float()
    if values.dim() != 2 or not values.numel() or len(values) != count:
        raise ValueError(
            f"{name}: expected a row for each of {counted(count, item)}, at least one, got {tuple(values.shape)}"
        )
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return values


def _is_number(value: object) -> bool:
    numbers = int | float | np.integer | np.floating
    return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)


def _finite(value: Any) -> float | None:
    return float(value) if _is_number(value) else None
