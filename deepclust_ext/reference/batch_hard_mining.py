"""Batch-hard mining between a teacher and a student batch, in plain PyTorch."""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from deepclust_ext.reference.autocast import float32_under_autocast, with_range
from deepclust_ext.reference.normalize import l2_normalize

#: Squared distances below this value count as this value; their gradient is zero.
MIN_SQUARED_DISTANCE = 1e-12


class HardPairs(NamedTuple):
    """The hardest positive and negative of every anchor (row), index -1 where there is none.

    Distances of an absent pair are 0. The teacher distances are those between the two teacher rows of the same pair.
    """

    positive_index: Tensor  # (N,) int64
    negative_index: Tensor  # (N,) int64
    positive_distance: Tensor  # (N,) teacher-student
    negative_distance: Tensor  # (N,) teacher-student
    positive_teacher_distance: Tensor  # (N,) teacher-teacher
    negative_teacher_distance: Tensor  # (N,) teacher-teacher


@float32_under_autocast
def batch_hard_mining(
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    *,
    normalize: bool = True,
    first_row: int = 0,
    num_rows: int | None = None,
) -> HardPairs:
    """Mine by full R x N distance matrices; see :func:`deepclust_ext.batch_hard_mining` for the contract."""
    anchors = slice(first_row, None if num_rows is None else first_row + num_rows)
    if teacher[anchors].shape[0] == 0:
        no_index = torch.empty(0, dtype=torch.int64, device=teacher.device)
        no_distance = (teacher + student)[anchors].sum(dim=1)
        return HardPairs(no_index, no_index, no_distance, no_distance, no_distance, no_distance)
    finite = torch.isfinite(teacher).all() & torch.isfinite(student).all()
    scaled = partial(l2_normalize, dim=1) if normalize else with_range  # squares of unit rows fit float16
    dtype, teacher, student = teacher.dtype, scaled(teacher), scaled(student)
    teacher_distances = _pairwise_distances(teacher[anchors], teacher)  # (R, N)
    distances = _pairwise_distances(teacher[anchors], student)  # (R, N)
    own = torch.arange(first_row, first_row + len(distances), device=teacher.device).unsqueeze(1)  # (R, 1)
    # The expanded form leaves rounding on the diagonal, so the anchor itself, always a positive, is put in by hand.
    is_negative = (teacher_distances > distances.gather(1, own)).scatter(1, own, False)  # (R, N)
    farthest, positive_index = distances.masked_fill(is_negative, -math.inf).max(dim=1)
    nearest, negative_index = distances.masked_fill(~is_negative, math.inf).min(dim=1)
    positive = _finish(farthest, positive_index, teacher_distances, own.squeeze(1), finite)
    negative = _finish(nearest, negative_index, teacher_distances, own.squeeze(1), finite)
    results = HardPairs(positive[0], negative[0], positive[1], negative[1], positive[2], negative[2])
    return HardPairs._make(x.to(dtype) if x.is_floating_point() else x for x in results)


def _finish(
    extreme: Tensor,  # (R,) mined teacher-student distance, +-inf where no column was eligible
    index: Tensor,  # (R,) int64
    teacher_distances: Tensor,  # (R, N)
    anchor: Tensor,  # (R,) int64
    finite: Tensor,  # () bool, no NaN or Inf anywhere in the inputs
) -> tuple[Tensor, Tensor, Tensor]:
    """Return index, distance and teacher distance with the rules for absent pairs and non-finite inputs applied."""
    found = extreme.isfinite()
    among_teachers = teacher_distances.gather(1, index.unsqueeze(1)).squeeze(1)
    among_teachers = torch.where(index == anchor, MIN_SQUARED_DISTANCE**0.5, among_teachers)
    poison = torch.where(finite, 1.0, math.nan).to(extreme.dtype)
    return (
        torch.where(found & finite, index, -1),
        torch.where(found, extreme, 0.0) * poison,
        torch.where(found, among_teachers, 0.0) * poison,
    )


def _pairwise_distances(
    rows: Tensor,  # (N, D)
    columns: Tensor,  # (M, D)
) -> Tensor:
    """Euclidean distances (N, M) from one matrix product, as the published code computes them."""
    squares = rows.pow(2).sum(dim=1, keepdim=True) + columns.pow(2).sum(dim=1) - 2 * rows @ columns.T
    return squares.clamp(min=MIN_SQUARED_DISTANCE).sqrt()
