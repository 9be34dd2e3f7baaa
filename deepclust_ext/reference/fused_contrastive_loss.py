"""Hardness-weighted contrastive loss, in plain PyTorch."""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from deepclust_ext.reference.autocast import float32_under_autocast, with_range
from deepclust_ext.reference.normalize import l2_normalize
from deepclust_ext.reference.temperature import positive_or_nan


@float32_under_autocast
def fused_contrastive_loss(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    *,
    temperature: float | Tensor = 0.5,
    hardness: float = 0.0,
    debias: float = 0.0,
    class_a: Tensor | None = None,  # (B, K)
    class_b: Tensor | None = None,  # (B, K)
    class_temperature: float = 1.0,
    queue: Tensor | None = None,  # (M, D)
    class_queue: Tensor | None = None,  # (M, K)
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Loss from the full matrix of scores; see :func:`deepclust_ext.fused_contrastive_loss` for the contract."""
    finite = torch.stack(
        [x.isfinite().all() for x in (z_a, z_b, class_a, class_b, queue, class_queue) if x is not None]
    )
    temperature = positive_or_nan(with_range(temperature))
    positive, scores, num_negatives = scores_of(
        z_a, z_b, class_a, class_b, queue, class_queue, temperature, class_temperature, normalize
    )
    sums = log_sums(scores, hardness)
    loss = losses_of_log_sums(positive, *sums, num_negatives, temperature, hardness, debias)
    loss = loss * torch.where(finite.all(), 1.0, math.nan).to(loss.dtype)
    if reduction != "none":
        loss = loss.sum() / (max(len(loss), 1) if reduction == "mean" else 1)
    return loss.to(z_a.dtype)


def scores_of(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    class_a: Tensor | None,  # (B, K)
    class_b: Tensor | None,  # (B, K)
    queue: Tensor | None,  # (M, D)
    class_queue: Tensor | None,  # (M, K)
    temperature: float | Tensor,
    class_temperature: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, int]:
    """Return the scores of the positives (R,), those of the negatives (R, C), elsewhere -inf, and their number.

    Scores are in float32 where the rows are in float16. Cosines fit that, other products and divided ones may not.
    """
    scaled = partial(l2_normalize, dim=1) if normalize else with_range
    z_a, z_b, queue = scaled(z_a), scaled(z_b), None if queue is None else scaled(queue)
    class_a, class_b, class_queue = map(with_range, (class_a, class_b, class_queue))
    if queue is None:
        anchors = torch.cat([z_a, z_b])
        scores = with_range(anchors @ anchors.T) / temperature  # (2B, 2B)
        if class_a is not None and class_b is not None:
            classes = torch.cat([class_a, class_b])
            scores = scores + classes @ classes.T / class_temperature
        positive = scores.diagonal(len(z_a)).repeat(2)
        own = torch.eye(len(z_a), dtype=torch.bool, device=z_a.device).repeat(2, 2)  # each row and its other view
        scores = scores.masked_fill(own, -math.inf)
        num_negatives = max(len(anchors) - 2, 0)
    else:
        scores = with_range(z_a @ queue.T) / temperature  # (B, M)
        positive = with_range((z_a * z_b).sum(dim=1)) / temperature
        if class_a is not None and class_b is not None and class_queue is not None:
            scores = scores + class_a @ class_queue.T / class_temperature
            positive = positive + (class_a * class_b).sum(dim=1) / class_temperature
        num_negatives = len(queue)
    return positive, scores, num_negatives


def log_sums(
    scores: Tensor,  # (R, C) -inf where the column is no negative of the row
    hardness: float,
) -> tuple[Tensor, Tensor]:
    """Return the logarithms of both sums over each row's negatives, (R,) each; without hardness the second is 0."""
    log_sum = ((1 + hardness) * scores).logsumexp(dim=1)
    least = torch.finfo(scores.dtype).tiny  # below, -inf would be NaN
    return log_sum, (max(hardness, least) * scores).logsumexp(dim=1) if hardness > 0 else torch.zeros_like(log_sum)


def losses_of_log_sums(
    positive: Tensor,  # (R,) scores of the positives
    log_sum: Tensor,  # (R,) of exp((1 + hardness) scores)
    log_weight_sum: Tensor,  # (R,) of exp(hardness scores), for hardness above 0
    num_negatives: int,
    temperature: float | Tensor,
    hardness: float,
    debias: float,
) -> Tensor:
    """Return the losses of all rows, (R,)."""
    if not num_negatives:
        return 0 * positive
    if hardness > 0:
        log_sum = math.log(num_negatives) + log_sum - log_weight_sum
    if debias > 0:
        # In logarithms, relative to the sum, so that nothing overflows: G - debias R exp(s_pos) = G share.
        share = 1 - (math.log(debias * num_negatives) + positive - log_sum).clamp(max=0).exp()
        floor = math.log(num_negatives) - 1 / temperature
        above = share > (1 - debias) * (floor - log_sum).exp()
        log_sum = torch.where(above, log_sum + torch.where(above, share, 1).log() - math.log1p(-debias), floor)
    return -logsigmoid(positive - log_sum)
