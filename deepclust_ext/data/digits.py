"""The 1,797 scanned digits that ship with scikit-learn."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Digits(Dataset[tuple[Tensor, int]]):
    """Gray 8 x 8 scans of hand-written digits, ten classes, nothing to download (scikit-learn ``load_digits``).

    Attributes:
        images: (1797, 1, 8, 8) float32 in [0, 1].
        names: What each scan is called.
        labels: (1797,) int64.
    """

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # slow to import, and recipes need the views of this room alone

        bunch = load_digits()
        self.images = torch.tensor(bunch.images, dtype=torch.float32, device="cpu").unsqueeze(1) / 16
        self.names = [f"digits[{index}]" for index in range(len(self.images))]
        self.labels = torch.tensor(bunch.target, dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one scan (1, 8, 8) and its class."""
        return self.images[index], int(self.labels[index])

    def images_at(self, indices: Sequence[int]) -> Tensor:
        """Return the scans at these places, (B, 1, 8, 8)."""
        return self.images[torch.tensor(indices, device="cpu")]
