"""Hard mining and its loss in a batch that is spread over ranks: a rank owns its anchors; indices count all rows."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepclust_ext import ops
from deepclust_ext.distributed.chosen_rows import choose, chosen_rows
from deepclust_ext.distributed.exchange import MOST_GATHERED_BYTES, gather_rows, sum_over_ranks
from deepclust_ext.distributed.group import Shards, resolve_group, shards_of
from deepclust_ext.distributed.pair_search import places_of_pairs
from deepclust_ext.ops._checks import check_bool, check_feature_pair, check_reduction, check_temperature, result_dtype
from deepclust_ext.reference import HardPairs, HSDStats
from deepclust_ext.reference.fused_hsd_loss import hsd_losses_of_pairs, stats_of_sums

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from deepclust_ext.distributed.group import Group


@torch.compiler.disable
def batch_hard_mining(
    teacher: Tensor,  # (n, D)
    student: Tensor,  # (n, D)
    *,
    normalize: bool = True,
    process_group: "Group" = None,
) -> HardPairs:
    """Find the hardest pairs of this rank's anchors among the rows of all ranks, as one process with all rows would.

    Up to 256 MB a rank gathers the rows of all ranks once, in their dtype, and memory is O(N D). Above that anchors go
    round in blocks, with the next block under way while one is mined, and memory is O(n D). Results and gradients are
    the same, to the bit, and do not depend on the order in which ranks arrive.

    Args:
        teacher: This rank's features (n, D) of the teacher; n may differ between ranks and be 0.
        student: This rank's features (n, D) of the student.
        normalize: As of :func:`deepclust_ext.batch_hard_mining`.
        process_group: The ranks; all by default.

    Returns:
        ``HardPairs``, six tensors (n,) with the same bits as in one process. Indices count the rows of all ranks in the
        order of the ranks. Gradients of other ranks' rows go back to these ranks and add up there.

    Raises:
        TypeError: As the op.
        ValueError: As the op.
    """
    check_feature_pair(teacher, student, "teacher", "student")
    check_bool(normalize, "normalize")
    group = resolve_group(process_group)
    return _mined(teacher, student, normalize, shards_of(teacher, group), group, teacher.dtype)


@torch.compiler.disable
def fused_hsd_loss(
    teacher: Tensor,  # (n, D)
    student: Tensor,  # (n, D)
    *,
    temperature: float | Tensor = 0.5,  # a tensor ()
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
    process_group: "Group" = None,
) -> Tensor | tuple[Tensor, HSDStats]:
    """Compute :func:`deepclust_ext.fused_hsd_loss` of a batch whose samples are spread over ranks.

    A rank owns its n anchors, whose pairs are mined among the rows of all ranks as by :func:`batch_hard_mining`. The
    mean over the ranks of what they return is the loss of the whole batch, and under DistributedDataParallel every
    parameter gets the gradient of one process; see :func:`deepclust_ext.distributed.fused_contrastive_loss`. The
    statistics are those of the whole batch, the same on all ranks.

    Args:
        teacher: This rank's features (n, D) of the teacher; n may differ between ranks and be 0.
        student: This rank's features (n, D) of the student.
        temperature: As of the op. A tensor is a parameter that is the same on all ranks.
        normalize: As of the op.
        reduction: "mean", "sum" or "none", which gives the losses of the rank's own anchors.
        return_stats: As of the op.
        process_group: The ranks; all by default.

    Returns:
        The loss, in the input dtype; with ``return_stats`` the pair (loss, stats).

    Raises:
        TypeError: As the op.
        ValueError: As the op.
    """
    check_feature_pair(teacher, student, "teacher", "student")
    temperature = check_temperature(temperature, "temperature", teacher, "teacher")
    check_bool(normalize, "normalize")
    check_bool(return_stats, "return_stats")
    check_reduction(reduction)
    group = resolve_group(process_group)
    shards = shards_of(teacher, group)
    dtype = result_dtype(teacher)
    with torch.autocast(teacher.device.type, enabled=False):
        pairs = _mined(teacher, student, normalize, shards, group, torch.promote_types(dtype, torch.float32))
        losses, sums = hsd_losses_of_pairs(pairs, temperature)
        if reduction != "none":
            losses = losses.sum() * len(shards.sizes) / (max(shards.total, 1) if reduction == "mean" else 1)
    loss = losses.to(dtype)
    return (loss, stats_of_sums(sum_over_ranks(sums, group), shards.total)) if return_stats else loss


def _mined(
    teacher: Tensor,  # (n, D)
    student: Tensor,  # (n, D)
    normalize: bool,
    shards: Shards,
    group: "ProcessGroup | None",
    dtype: torch.dtype,
) -> HardPairs:
    """Return the pairs of this rank's anchors, with distances in a dtype."""
    bytes_of_all = 2 * shards.total * teacher.shape[1] * teacher.element_size()
    if group is not None and len(shards.sizes) > 1 and bytes_of_all > MOST_GATHERED_BYTES:
        return _mined_in_blocks(teacher, student, normalize, shards, group, dtype)
    rows = [gather_rows(x, group, x.requires_grad, shards).to(dtype) for x in (teacher, student)]
    return ops.batch_hard_mining(
        *rows, normalize=normalize, first_row=shards.start, num_rows=shards.stop - shards.start
    )


def _mined_in_blocks(
    teacher: Tensor,  # (n, D)
    student: Tensor,  # (n, D)
    normalize: bool,
    shards: Shards,
    group: "ProcessGroup",
    dtype: torch.dtype,
) -> HardPairs:
    """Return the same pairs and gradients as :func:`_mined`, to the bit, without the rows of all ranks.

    The op mines among own rows and those of other ranks that may be in a pair. These are 3 n rows at most, unless there
    are ties.
    """
    teacher, student = teacher.contiguous(), student.contiguous()
    places, is_wrong = places_of_pairs(teacher, student, normalize, shards, group)
    choice = choose(places, shards, group)
    rows = [chosen_rows(x, choice, group).to(dtype) for x in (teacher, student)]
    if is_wrong:  # a row of another rank is not finite
        rows = [x + torch.nan for x in rows]
    pairs = ops.batch_hard_mining(*rows, normalize=normalize, first_row=choice.first, num_rows=len(teacher))
    positive, negative = (
        torch.where(index < 0, -1, choice.places[index.clamp(min=0)])
        for index in (pairs.positive_index, pairs.negative_index)
    )
    return pairs._replace(positive_index=positive, negative_index=negative)
