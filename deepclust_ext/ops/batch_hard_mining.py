"""batch_hard_mining: the hardest positive and negative of every anchor."""

import torch
from torch import Tensor

from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import check_bool, check_feature_pair, check_integer
from deepclust_ext.ops._dispatch import call
from deepclust_ext.reference import HardPairs


def batch_hard_mining(
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    *,
    normalize: bool = True,
    first_row: int = 0,
    num_rows: int | None = None,
) -> HardPairs:
    r"""Find the hardest positive and the hardest negative of every anchor, without any N x N matrix.

    Row i of both inputs is the same sample, seen by the teacher and by the student. Let t and s be the rows, divided by
    their L2 norm if ``normalize``:

    .. math::
        DT_{ij} = \sqrt{\max(|t_i - t_j|^2, 10^{-12})} \qquad D_{ij} = \sqrt{\max(|t_i - s_j|^2, 10^{-12})}

    The negatives of anchor i are the columns j with :math:`DT_{ij} > D_{ii}`. Its positives are all others, including
    itself. The hardest positive is the farthest by D, the hardest negative the nearest; ties go to the lowest index.

    Any loss can use the results. All four distances carry gradients to both inputs (0 where a distance is clamped).
    Half-precision inputs are computed in float32. Under autocast inputs are cast to float32, as for ``torch.cdist``.
    Results do not depend on the number of threads.

    Args:
        teacher: Features (N, D), float16, bfloat16, float32 or float64. N may be 0.
        student: Features (N, D), same dtype and device.
        normalize: Divide rows by max(L2 norm, 1e-12) first. A row whose norm is below 1e-12 gets gradient 0. Without
            ``normalize``, rows whose squares overflow the accumulation type (about 1e19 in float32) count as not
            finite.
        first_row: The first anchor, 0 to N. Each anchor has the same pair, to the bit, however many anchors there are.
        num_rows: R, the number of anchors; by default all from ``first_row`` on.

    Returns:
        ``HardPairs``, six tensors (R,). ``positive_index`` and ``negative_index`` are int64, -1 where an anchor has
        none. ``positive_distance`` and ``negative_distance`` (teacher-student), ``positive_teacher_distance`` and
        ``negative_teacher_distance`` (teacher-teacher) have the input dtype, and are 0 for absent pairs. If any input
        element is NaN or Inf, every index is -1 and every distance NaN.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: Shapes or devices do not fit, or ``first_row`` or ``num_rows`` is out of range.

    Example:
        >>> teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> student = torch.tensor([[0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
        >>> pairs = batch_hard_mining(teacher, student)
        >>> pairs.positive_index.tolist(), pairs.negative_index.tolist()
        ([0, 1, 2], [1, 0, 1])

    Source: the mining of HaDis, https://arxiv.org/abs/2401.14038.
    """
    first_row, num_rows = _check(teacher, student, first_row, num_rows)
    check_bool(normalize, "normalize")
    if not _extension.uses_native(teacher.device.type):
        return reference.batch_hard_mining(
            teacher, student, normalize=normalize, first_row=first_row, num_rows=num_rows
        )
    outputs = call("batch_hard_mining", teacher, student, normalize, first_row, num_rows)
    *distances, positive_index, negative_index, _, _ = outputs
    return HardPairs(positive_index, negative_index, *distances)


def _check(
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    first_row: int,
    num_rows: int | None,
) -> tuple[int, int | None]:
    """Return the checked range of the anchors; None stays None and means all."""
    check_feature_pair(teacher, student, "teacher", "student")
    if type(first_row) is int and first_row == 0 and num_rows is None:  # the common case
        return 0, None
    first_row = check_integer(first_row, "first_row", 0, teacher.shape[0])
    most = teacher.shape[0] - first_row
    return first_row, most if num_rows is None else check_integer(num_rows, "num_rows", 0, most)


def fake_pair_gradient(
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    want_teacher: bool,
    want_student: bool,
) -> tuple[Tensor, Tensor]:
    """Return gradients of the right shapes for both inputs; one that is not wanted is empty."""
    return (
        teacher.new_empty(teacher.shape if want_teacher else (0,)),
        student.new_empty(student.shape if want_student else (0,)),
    )


def _fake(
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    normalize: bool = True,
    first_row: int = 0,
    num_rows: int | None = None,
) -> tuple[Tensor, ...]:
    first_row, num_rows = _check(teacher, student, first_row, num_rows)
    count = teacher.shape[0] if num_rows is None else num_rows
    accumulation = torch.promote_types(teacher.dtype, torch.float32)
    return (
        *(teacher.new_empty(count) for _ in range(4)),
        *(teacher.new_empty(count, dtype=torch.int64) for _ in range(2)),
        teacher.new_empty((4, count), dtype=accumulation),
        teacher.new_empty((2, teacher.shape[0]), dtype=accumulation),
    )


def _fake_backward(
    grad_positive_distance: Tensor,  # (R,)
    grad_negative_distance: Tensor,  # (R,)
    grad_positive_teacher_distance: Tensor,  # (R,)
    grad_negative_teacher_distance: Tensor,  # (R,)
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    positive_index: Tensor,  # (R,)
    negative_index: Tensor,  # (R,)
    inverse_distance: Tensor,  # (4, R)
    inverse_norm: Tensor,  # (2, N)
    normalize: bool,
    first_row: int,
    want_teacher: bool,
    want_student: bool,
) -> tuple[Tensor, Tensor]:
    return fake_pair_gradient(teacher, student, want_teacher, want_student)


if _extension.NATIVE_DEVICES:
    torch.library.register_fake("deepclust_ext::batch_hard_mining", _fake)
    torch.library.register_fake("deepclust_ext::batch_hard_mining_backward", _fake_backward)
