"""Synthetic features of known clusters: mixtures of von Mises-Fisher distributions of unequal sizes."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

#: Standard deviation of the logarithm of a cluster's share: the largest of a thousand has some ten times the median.
UNEVENNESS = 0.8


class Mixture:
    """Clusters around random directions, from which rows can be drawn block by block.

    Args:
        columns: D.
        clusters: K.
        concentration: Kappa of every cluster.
        seed: Of everything random.
    """

    def __init__(self, columns: int, clusters: int, concentration: float, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._concentration = concentration
        self._centers = normalize(torch.from_numpy(self._generator.standard_normal((clusters, columns))), dim=1)
        shares = np.exp(UNEVENNESS * self._generator.standard_normal(clusters))
        self._shares = shares / shares.sum()

    def draw(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return unit rows (N, D) float32, and the cluster (N,) of each."""
        labels = torch.from_numpy(self._generator.choice(len(self._shares), rows, p=self._shares))
        blocks = [
            von_mises_fisher(self._centers[own], self._concentration, self._generator).float()
            for own in labels.split(65_536)
        ]
        return torch.cat(blocks), labels


def von_mises_fisher(
    means: Tensor,  # (N, D) unit rows, float64
    concentration: float,
    generator: np.random.Generator,
) -> Tensor:
    """Return a row (N, D) drawn around each mean.

    Source: Wood, "Simulation of the von Mises Fisher distribution", 1994.
    """
    count, columns = means.shape
    free = columns - 1
    b = (-2 * concentration + np.sqrt(4 * concentration**2 + free**2)) / free
    x = (1 - b) / (1 + b)
    c = concentration * x + free * np.log(1 - x**2)
    cosines, missing = np.empty(count), np.arange(count)
    while len(missing):
        z = generator.beta(free / 2, free / 2, len(missing))
        drawn = (1 - (1 + b) * z) / (1 - (1 - b) * z)
        taken = concentration * drawn + free * np.log(1 - x * drawn) - c >= np.log(generator.random(len(missing)))
        cosines[missing[taken]] = drawn[taken]
        missing = missing[~taken]
    noise = torch.from_numpy(generator.standard_normal((count, columns)))
    across = normalize(noise - (noise * means).sum(dim=1, keepdim=True) * means, dim=1)
    along = torch.from_numpy(cosines).unsqueeze(1)
    return along * means + (1 - along.square()).sqrt() * across
