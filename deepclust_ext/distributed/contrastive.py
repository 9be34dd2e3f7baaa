"""The contrastive loss of a batch that is spread over ranks: a rank owns anchors; negatives are the rows of all."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepclust_ext import ops
from deepclust_ext.distributed.exchange import MOST_GATHERED_BYTES, gather_rows
from deepclust_ext.distributed.group import Shards, resolve_group, shards_of
from deepclust_ext.distributed.log_sums import NO_SUM, NO_WEIGHT, Options, Rows, log_sums_of, positive_scores
from deepclust_ext.distributed.shared_pairs import has_pair_kernels, sums_of_shared_pairs
from deepclust_ext.ops._checks import (
    check_bool,
    check_divisor,
    check_hardness,
    check_reduction,
    check_share,
    check_temperature,
    result_dtype,
)
from deepclust_ext.ops.fused_contrastive_loss import check_contrastive_tensors, unit_rows
from deepclust_ext.reference.fused_contrastive_loss import losses_of_log_sums

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from deepclust_ext.distributed.group import Group


@torch.compiler.disable
def fused_contrastive_loss(
    z_a: Tensor,  # (n, D)
    z_b: Tensor,  # (n, D)
    *,
    temperature: float | Tensor = 0.5,  # a tensor ()
    hardness: float = 0.0,
    debias: float = 0.0,
    class_a: Tensor | None = None,  # (n, K)
    class_b: Tensor | None = None,  # (n, K)
    class_temperature: float = 1.0,
    queue: Tensor | None = None,  # (M, D)
    class_queue: Tensor | None = None,  # (M, K)
    normalize: bool = True,
    reduction: str = "mean",
    process_group: "Group" = None,
) -> Tensor:
    r"""Compute :func:`deepclust_ext.fused_contrastive_loss` of a batch whose samples are spread over ranks.

    The negatives of an anchor are the rows of all ranks, or the ``queue``, which must be the same on all ranks. A rank
    owns its 2n anchors, and nothing has size n x N. Results do not depend on the order in which ranks arrive.

    On the CPU every pair of rows is computed by one rank. Blocks of rows travel in their dtype, about half of all rows
    to each rank; the next block travels while one is multiplied. The sums of a block's anchors and the gradients of its
    rows go back to their owner. Memory is O(n D). On CUDA, and without the native library, this is done only if the
    rows of all ranks exceed 256 MB. Up to that, a rank gathers all rows once and computes all pairs of its own anchors.
    So a pair of rows on two ranks is computed by both, and memory is O(N D).

    With reduction "mean" or "sum", the *mean over the ranks* of what they return is the loss of the whole batch. For
    "mean" a rank returns the mean over its own anchors times P n / N, for P ranks and n of N samples; for "sum" it
    returns P times the sum. Gradients add up over the ranks on their way back through the gathered rows, and
    DistributedDataParallel then takes the mean. So every parameter gets the gradient of one process with the whole
    batch. With "none" a rank returns the losses of its own anchors.

    Args:
        z_a: This rank's features (n, D) of one view; n may differ between ranks and be 0.
        z_b: This rank's features (n, D) of the other view.
        temperature: As of the op. A tensor is a parameter that is the same on all ranks.
        hardness: As of the op.
        debias: As of the op.
        class_a: Class vectors (n, K) of ``z_a``.
        class_b: Class vectors (n, K) of ``z_b``.
        class_temperature: As of the op.
        queue: Negatives (M, D) of all anchors, the same on all ranks.
        class_queue: Class vectors (M, K) of the queue.
        normalize: As of the op.
        reduction: "mean", "sum" or "none".
        process_group: The ranks; all by default.

    Returns:
        The loss, in the input dtype. A NaN or Inf in the rows of any rank makes the losses of all ranks NaN.

    Raises:
        TypeError: As the op.
        ValueError: As the op.
    """
    check_contrastive_tensors(z_a, z_b, class_a, class_b, queue, class_queue)
    temperature = check_temperature(temperature, "temperature", z_a, "z_a")
    hardness = check_hardness(hardness, temperature)
    debias, class_temperature = check_share(debias, "debias"), check_divisor(class_temperature, "class_temperature")
    check_bool(normalize, "normalize")
    check_reduction(reduction)
    group = resolve_group(process_group)
    shards = shards_of(z_a, group)
    if queue is not None or len(shards.sizes) == 1:
        loss = ops.fused_contrastive_loss(
            z_a,
            z_b,
            temperature=temperature,
            hardness=hardness,
            debias=debias,
            class_a=class_a,
            class_b=class_b,
            class_temperature=class_temperature,
            queue=queue,
            class_queue=class_queue,
            normalize=normalize,
            reduction=reduction,
        )
        return loss * {"mean": shards.weight, "sum": len(shards.sizes), "none": 1}[reduction]
    assert group is not None
    dtype = result = result_dtype(z_a)
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast(z_a.device.type, enabled=False):
        divisor = temperature
        if isinstance(temperature, Tensor):  # as in the op: rows are divided by its root, which finds its gradient
            temperature = temperature.to(torch.promote_types(temperature.dtype, wide))
            root = temperature.to(wide).rsqrt()
            z_a, z_b = (_normalized(z.to(wide), normalize) * root for z in (z_a, z_b))
            class_a, class_b = (x if x is None else x.to(wide) for x in (class_a, class_b))
            dtype, divisor, normalize = wide, 1.0, False
        assert isinstance(divisor, float)
        rows = Rows(z_a, z_b, class_a, class_b)
        options = Options(divisor, hardness, class_temperature, normalize)
        gathered_bytes = 2 * shards.total * z_a.shape[1] * z_a.element_size()
        if has_pair_kernels(z_a) or gathered_bytes > MOST_GATHERED_BYTES:
            positive, *sums = sums_of_shared_pairs(rows, options, shards, group)
        else:
            positive, *sums = _sums_of_own_anchors(rows, options, shards, group, dtype)
        by_growth, by_weight = sums[0].clamp(min=NO_SUM), sums[1].clamp(min=NO_WEIGHT)
        negatives = max(2 * shards.total - 2, 0)
        losses = losses_of_log_sums(positive, by_growth, by_weight, negatives, temperature, hardness, debias)
        losses = losses + 0 * by_growth.detach()  # NaN stays
        if reduction != "none":
            losses = losses.sum() * len(shards.sizes) / (max(2 * shards.total, 1) if reduction == "mean" else 1)
    return losses.to(result)


def _normalized(
    rows: Tensor,  # (n, D)
    normalize: bool,
) -> Tensor:
    return unit_rows(rows) if normalize else rows


def _sums_of_own_anchors(
    rows: Rows,  # of this rank
    options: Options,
    shards: Shards,
    group: "ProcessGroup",
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores of positives and the logarithms of both sums, (2n,) float64.

    These are over the ranks before this one, this one, and those after it.
    """
    sizes = [shards.start, shards.stop - shards.start, shards.total - shards.stop]

    def of_others(a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the rows of both views of the ranks before this one, and of those after it."""
        if a is None or b is None:
            return None, None
        everyone = gather_rows(torch.stack([a, b], dim=1), group, shards=shards)  # (N, 2, D)
        before, _, after = everyone.split(sizes)
        return before.flatten(0, 1).to(dtype), after.flatten(0, 1).to(dtype)

    features, classes = of_others(rows.z_a, rows.z_b), of_others(rows.class_a, rows.class_b)
    rows = rows.to(dtype)
    as_anchors = rows.doubled()
    before = log_sums_of(as_anchors._replace(queue=features[0], class_queue=classes[0]), options)
    after = log_sums_of(as_anchors._replace(queue=features[1], class_queue=classes[1]), options)
    by_growth, by_weight = (torch.stack(x) for x in zip(before, log_sums_of(rows, options), after, strict=True))
    sums = by_growth.clamp(min=NO_SUM).logsumexp(dim=0), by_weight.clamp(min=NO_WEIGHT).logsumexp(dim=0)
    # After the sums, so that backward comes to these rows first and frees them.
    return positive_scores(rows, options).repeat(2), *sums
