"""What several methods are made of."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


def mlp(
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    *,
    batch_norm: bool = True,
    final_std: float | None = None,
    final_bias: bool = True,
) -> nn.Sequential:
    """Return a head: linear, batch normalisation, ReLU, linear with weights of ``final_std`` or torch's default."""
    final = nn.Linear(hidden_dim, out_dim, bias=final_bias)
    if final_std is not None:
        nn.init.normal_(final.weight, std=final_std)
    norm = [nn.BatchNorm1d(hidden_dim)] if batch_norm else []
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), *norm, nn.ReLU(inplace=True), final)


def check_views(views: Sequence[Tensor], expected: int) -> None:
    """Require a number of views; ValueError otherwise."""
    if len(views) != expected:
        raise ValueError(f"views: expected {expected} tensors, got {len(views)}")


@torch.no_grad()
def update_average(average: nn.Module, online: nn.Module, momentum: float) -> None:
    """Keep ``momentum`` of every averaged weight and take the rest from online; batch statistics are each one's own."""
    for old, new in zip(average.parameters(), online.parameters(), strict=True):
        old.lerp_(new, 1 - momentum)


def rising_momentum(momentum: float, progress: float) -> float:
    r"""Return the momentum of an average after the share ``progress`` of a run: from ``momentum`` up to 1 at its end.

    :math:`1 - (1 - m) (\cos(\pi t) + 1) / 2`, as in BYOL, arXiv 2006.07733, section 3.3.
    """
    return 1 - (1 - momentum) * (math.cos(math.pi * progress) + 1) / 2


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, without gradients, and back into the mode that it was in."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


@torch.no_grad()
def spread(
    features: Tensor,  # (B, D)
) -> dict[str, Tensor]:
    """Total variance of the unit rows (0 = one point, 1 = even) and the number of directions that carry it."""
    rows = normalize(features.float(), dim=1)
    centered = rows - rows.mean(dim=0)
    gram = centered @ centered.T
    trace = gram.diagonal().sum()
    rank = trace.square() / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)
    return {"feature_spread": trace / len(rows), "effective_rank": rank}
