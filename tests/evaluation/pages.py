"""Images, rows and shares to make pages of, and what a page holds."""

import base64
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset

from deepclust_ext.evaluation.report import report_html


class Named(Dataset[Any]):
    """Images with names, and with files that were left out."""

    def __init__(self, images: Sequence[Tensor], names: Sequence[str] | None = None) -> None:
        self.images = images
        self.names = [f"folder/{place}.png" for place in range(len(images))] if names is None else list(names)
        self.skipped: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def gray(count: int) -> Named:
    """Images of the whole range that differ."""
    return Named([torch.tensor([[[0, 255], [place % 256, 0]]], dtype=torch.uint8) for place in range(count)])


def blobs(count: int, num_clusters: int = 3, dim: int = 6) -> tuple[Tensor, Tensor]:
    """Rows (N, D) around as many centers as clusters, and shares (N, K)."""
    centers = torch.eye(num_clusters, dim)
    rows = normalize(centers[torch.arange(count) % num_clusters] + 0.1 * torch.randn(count, dim), dim=1)
    return rows, (rows @ centers.T / 0.1).softmax(dim=1)


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data: dict[str, Any] = json.loads(text)
    return data


def decoded(picture: str) -> Image.Image:
    head, body = picture.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == f"data:image/{(image.format or '').lower()};base64"
    return image


def make(images: Dataset[Any], rows: Tensor, shares: Tensor, **settings: Any) -> dict[str, Any]:
    return data_of(report_html(images, rows, shares, **{"title": "a run", **settings}))
