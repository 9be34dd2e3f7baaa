"""Rows as points in the plane: some by t-SNE, and the others placed between their nearest neighbors among these."""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn needs it
from torch import Tensor

from deepclust_ext.ops.nearest_neighbors import nearest_neighbors

#: Rows that t-SNE places: of 1,000 it takes seconds, of 60,000 it would take most of an hour.
TSNE_ROWS = 1000
_FEWEST = 8  # of fewer rows, neighborhoods say nothing
_STEPS = 500
_PERPLEXITY = 30.0
_TEMPERATURE = 0.05  # of the weights of the three rows that another one stands between


def embedding_map(
    rows: Tensor,  # (N, D)
    item: str = "image",
) -> tuple[NDArray[np.float64], str]:
    """Return a point (N, 2) for each row, scaled to 0 to 1 in both directions alike, and a text on the method.

    Up to 1,000 rows, drawn at random with a fixed seed where there are more, are placed by t-SNE from their principal
    components (van der Maaten and Hinton, JMLR 9, 2008). Each other one is placed at the mean of its three nearest
    among them, weighted by exp(cosine / 0.05). Equal rows give equal points in every process.

    Args:
        rows: Finite unit rows, N > 0.
        item: What messages call a row.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    chosen = torch.randperm(len(rows), generator=generator, device="cpu")[:TSNE_ROWS].sort().values
    placed, name = _place(rows[chosen].double().numpy())
    if len(chosen) == len(rows):
        return _in_unit_square(placed), f"{name} of all {len(rows):,} {item}s"
    cosines, indices = nearest_neighbors(rows, rows[chosen], k=3)
    weights = (cosines.double() / _TEMPERATURE).softmax(dim=1).numpy()
    points = (weights[:, :, None] * placed[indices.numpy()]).sum(axis=1)
    points[chosen.numpy()] = placed
    how = f"{name} of {len(chosen):,} {item}s drawn at random; each of the others stands between its three nearest"
    return _in_unit_square(points), f"{how} among them"


def _place(
    rows: NDArray[np.float64],  # (n, D)
) -> tuple[NDArray[np.float64], str]:
    """Return points (n, 2) and the name of the method."""
    with threadpool_limits(1):  # sums of several threads change from run to run, and t-SNE makes much of little
        left, sizes, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        points = np.zeros((len(rows), 2))
        points[:, : min(2, len(sizes))] = (left * sizes)[:, :2]
        scale = points[:, 0].std()
        if len(rows) < _FEWEST or scale < 1e-6:  # equal rows differ by rounding at most
            return points, "principal components"
        perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
        start = (points / scale * 1e-4).astype(np.float32)
        tsne = TSNE(perplexity=perplexity, init=start, max_iter=_STEPS, random_state=0)
        return tsne.fit_transform(rows).astype(np.float64), "t-SNE"


def _in_unit_square(points: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = points.min(axis=0), points.max(axis=0)
    centered: NDArray[np.float64] = points - (low + high) / 2
    return centered / max(float((high - low).max()), 1e-12) + 0.5
