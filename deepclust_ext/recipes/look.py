"""What a sample of images shows: gray or colored, on a plain ground or not, with an up or without."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from deepclust_ext.data import Images
from deepclust_ext.data._checks import in_float32
from deepclust_ext.reference.normalize import l2_normalize

#: Images that are looked at, spread evenly over the data set.
SAMPLE = 512
#: Share of an image's pixels within a sixteenth of its range of its darkest or brightest: half of the scans have more.
PLAIN = 0.3
#: Images below which nobody can tell that they have no up; photographs, the usual case, have one.
FEWEST = 200
NEIGHBORS = 5
MARGIN = 0.12


@dataclass(frozen=True)
class Look:
    """What a sample of images shows.

    Attributes:
        sides: Median height and width.
        gray: Whether no image has a color.
        plain: Median share of pixels that belong to a plain ground, see :func:`plain_share`.
        up: How much more often neighbors are upright than turned, see :func:`up_margin`; None for too few images.
    """

    sides: tuple[int, int]
    gray: bool
    plain: float
    up: float | None


def look(images: Images) -> Look:
    """Return what a sample of images shows."""
    count = min(len(images), SAMPLE)
    sample = images.images_at([place * len(images) // count for place in range(count)])
    pixels = [in_float32(image).float() for image in sample]
    sides = torch.tensor([image.shape[1:] for image in pixels], dtype=torch.float32, device="cpu").quantile(0.5, dim=0)
    return Look(
        sides=(round(float(sides[0])), round(float(sides[1]))),
        gray=all(bool((image == image[:1]).all()) for image in pixels),
        plain=plain_share(pixels),
        up=up_margin(torch.stack([thumbnail(image) for image in pixels])) if count >= FEWEST else None,
    )


def plain_share(images: Sequence[Tensor]) -> float:
    """Return the median over images (C, H, W) of the share of pixels near the darkest or the brightest.

    Strokes are drawn on a plain ground, which is one end of the range: 0.5 to 0.8 of the pixels of scanned digits are
    within a sixteenth of the range from that end. Photographs and textures have few such pixels, below 0.2 in the
    median.
    """
    shares = []
    for image in images:
        low, high = image.min(), image.max()
        edge = (high - low) / 16
        shares.append(torch.stack([image <= low + edge, image >= high - edge]).float().mean(dim=(1, 2, 3)).max())
    return float(torch.stack(shares).quantile(0.5))


def thumbnail(image: Tensor) -> Tensor:
    """Return 4 x 4 means (C, 4, 4) of an image (C, H, W)."""
    return adaptive_avg_pool2d(image, 4)


def up_margin(
    thumbnails: Tensor,  # (N, C, 4, 4)
) -> float:
    """Return how much more often an image's neighbors are upright than turned by the most frequent other turn.

    Neighbors are found among the thumbnails of all images in all four turns. If images have no up, each turn makes up a
    quarter of the neighbors. So the result is near 0 for patches of textures and images from above, and up to 1 if all
    images are upright. It is the two-sample test by nearest neighbors (Schilling, Journal of the American Statistical
    Association 81, 1986) between images and turned images, with the difference of shares as the size of the effect.
    """
    centered = thumbnails - thumbnails.mean(dim=(1, 2, 3), keepdim=True)
    turned = torch.stack([torch.rot90(centered, turns, (2, 3)) for turns in range(4)])
    rows = l2_normalize(turned.flatten(2), dim=2)
    cosines = torch.einsum("nd,tmd->ntm", rows[0], rows)
    cosines.diagonal(dim1=0, dim2=2).fill_(-2)  # an image is no neighbor of its own, however turned
    near = cosines.flatten(1).topk(min(NEIGHBORS, len(rows[0]) - 1), dim=1).indices // len(thumbnails)
    shares = torch.bincount(near.flatten(), minlength=4) / near.numel()
    return float(shares[0] - shares[1:].max())
