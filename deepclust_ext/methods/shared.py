"""Parts that several methods share."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deepclust_ext.methods.whole_batch import WholeBatch
from deepclust_ext.ops._checks import counted
from deepclust_ext.reference.normalize import l2_normalize


def mlp(
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    *,
    batch_norm: bool = True,
    final_std: float | None = None,
    final_bias: bool = True,
) -> nn.Sequential:
    """Return a head: linear, batch normalization, ReLU, linear with weights of ``final_std`` or torch's default."""
    final = nn.Linear(hidden_dim, out_dim, bias=final_bias)
    if final_std is not None:
        nn.init.normal_(final.weight, std=final_std)
    norm = [nn.BatchNorm1d(hidden_dim)] if batch_norm else []
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), *norm, nn.ReLU(inplace=True), final)


def check_views(views: Sequence[Tensor], expected: int) -> None:
    """Require a number of views, all of the same images, of which there is one at least; ValueError otherwise."""
    if len(views) != expected:
        raise ValueError(f"views: expected {counted(expected, 'tensor')}, got {len(views)}")
    counts = [len(view) for view in views]
    if len(set(counts)) > 1:
        raise ValueError(f"views: expected the same images in each, got {', '.join(map(str, counts))} of them")
    if not counts[0]:
        raise ValueError("views: expected at least one image, got none")


def as_input(
    network: nn.Module,
    images: Tensor,  # (B, C, H, W)
) -> Tensor:
    """Return images (B, C, H, W) in the dtype of a network's weights.

    Raises:
        TypeError: If the images are no tensor, or not floating: for integers it is not known which value is white.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a tensor (B, C, H, W), got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"images: expected a floating dtype, got {images.dtype}; a view that makes one of 0 to 255 is "
            f"make_view('resize', size=...)"
        )
    weight = next((weight for weight in network.parameters() if weight.is_floating_point()), images)
    # A program that torch.export makes of a conversion, even of none, is bound to its device.
    return images if images.dtype == weight.dtype else images.to(weight.dtype)


class InferenceNetwork(nn.Module):
    """A backbone with a head for rows and, where there is one, a head for clusters.

    Args:
        backbone: Maps images (B, C, H, W) to features (B, F).
        row_head: Maps features to rows (B, D), which are normalized here.
        share_head: Maps features to shares (B, K) of clusters, or None.
    """

    def __init__(self, backbone: nn.Module, row_head: nn.Module, share_head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone, self.row_head, self.share_head = backbone, row_head, share_head
        self.training = False  # the parts have modes of their own, which putting this one back must not touch

    def forward(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> tuple[Tensor, ...]:
        """Return unit rows (B, D) and, with a head for them, shares (B, K)."""
        features = self.backbone(as_input(self, images))
        rows = l2_normalize(self.row_head(features), dim=1)
        return (rows,) if self.share_head is None else (rows, self.share_head(features))


@torch.no_grad()
def update_average(average: nn.Module, online: nn.Module, momentum: float) -> None:
    """Keep a share ``momentum`` of every averaged weight and take the rest from ``online``; batch statistics stay."""
    for old, new in zip(average.parameters(), online.parameters(), strict=True):
        old.lerp_(new, 1 - momentum)


def rising_momentum(momentum: float, progress: float) -> float:
    r"""Return the momentum of an average after the share ``progress`` of a run: from ``momentum`` up to 1 at its end.

    :math:`1 - (1 - m) (\cos(\pi t) + 1) / 2`, as in BYOL, arXiv 2006.07733, section 3.3.
    """
    return 1 - (1 - momentum) * (math.cos(math.pi * progress) + 1) / 2


@torch.no_grad()
def spread(
    features: Tensor,  # (B, D)
    batch: WholeBatch | None = None,
) -> dict[str, Tensor]:
    """Return the total variance of the unit rows (0 = one point, 1 = even) and how many directions carry it.

    Args:
        features: Features of this rank.
        batch: The batch that the features are a part of; None if they are all of it.
    """
    rows = l2_normalize(features.float(), dim=1)
    count = len(rows) if batch is None else batch.count(rows)
    with torch.autocast(rows.device.type, enabled=False):
        if batch is None or count == len(rows):
            centered = rows - rows.mean(dim=0)
            gram = centered @ centered.T
        else:  # the products of columns: as large a sum of squares, and a sum over ranks
            centered = rows - batch.sum(rows.sum(dim=0)) / count
            gram = batch.sum(centered.T @ centered)
    trace = gram.diagonal().sum()
    rank = trace.square() / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)
    return {"feature_spread": trace / count, "effective_rank": rank}


@torch.no_grad()
def usage(
    assignments: Tensor,  # (B, K)
    batch: WholeBatch | None = None,
) -> dict[str, Tensor]:
    """Return the clusters in use, as the exponential of the mean assignment's entropy, and the mean largest share.

    Args:
        assignments: Assignments of this rank's images.
        batch: The batch that they are a part of; None if they are all of it.
    """
    shares = assignments.float()
    mean, confidence = shares.mean(dim=0), shares.amax(dim=1).mean()
    if batch is not None and batch.count(shares) > len(shares):
        mean, confidence = batch.sum(shares.sum(dim=0)) / batch.count(shares), batch.weight * confidence
    return {"effective_clusters": torch.special.entr(mean).sum().exp(), "confidence": confidence}


def collapse_of_head(terms: Mapping[str, float], num_clusters: int) -> str | None:
    """Return what an epoch's mean :func:`spread` and :func:`usage` say of a collapse, or None."""
    if terms["feature_spread"] < 0.01:
        return f"with a feature spread of {terms['feature_spread']:.2g} the features have collapsed to a point"
    if terms["effective_clusters"] < num_clusters / 2:
        return (
            f"the cluster head uses as much as {terms['effective_clusters']:.1f} of {num_clusters} clusters; "
            f"a larger batch or a lower learning rate keeps the others alive"
        )
    return None
