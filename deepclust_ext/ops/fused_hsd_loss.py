"""fused_hsd_loss: the hardness-aware self-distillation loss in one op."""

from typing import Literal, overload

import torch
from torch import Tensor

from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import check_bool, check_feature_pair, check_reduction, check_temperature, result_dtype
from deepclust_ext.ops._dispatch import call
from deepclust_ext.ops.batch_hard_mining import batch_hard_mining, fake_pair_gradient
from deepclust_ext.reference import HSDStats
from deepclust_ext.reference.fused_hsd_loss import hsd_loss_of_pairs


@overload
def fused_hsd_loss(
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    *,
    temperature: float | Tensor = ...,
    normalize: bool = ...,
    reduction: str = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...
@overload
def fused_hsd_loss(
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    *,
    temperature: float | Tensor = ...,
    normalize: bool = ...,
    reduction: str = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, HSDStats]: ...
def fused_hsd_loss(
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    *,
    temperature: float | Tensor = 0.5,  # a tensor ()
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, HSDStats]:
    r"""Compute the hardness-aware self-distillation loss, from the hardest positive and negative of every anchor.

    It uses the pairs p, n and distances D (teacher-student), DT (teacher-teacher) of :func:`batch_hard_mining`:

    .. math::
        w^p_i = \max(D_{ip} - DT_{ip}, 0) \qquad w^n_i = \max(DT_{in} - D_{in}, 0) \qquad
        loss_i = \log(1 + \exp((w^p_i D_{ip} - w^n_i D_{in}) / temperature))

    This is the cross entropy of the logits (w^n D_n, w^p D_p) / temperature with target 0. The weights are constants.
    The gradient reaches the two mined student rows, and the teacher if it requires one. An absent pair has logit 0.

    The loss is exactly log 2 = 0.6931 with zero gradient both for a collapsed batch and for a student equal to its
    teacher. ``return_stats=True`` tells which it is, at no cost.

    Half-precision inputs are computed in float32; under autocast inputs are cast to float32, as for torch's own losses.
    Results do not depend on the number of threads. Second derivatives raise ``RuntimeError``.

    Args:
        teacher: Features (N, D) of the teacher, float16, bfloat16, float32 or float64. N may be 0.
        student: Features (N, D) of the student, row i being the same sample; same dtype and device.
        temperature: Divides the logits; 1e-30 to 1e30. The published value is 0.5. It may be a floating tensor (), such
            as a learned parameter, which receives a gradient; on the device of the rows, or on the CPU. A tensor that
            is not positive is an error on the CPU. On CUDA and in compiled code, where checking would wait for the
            device, the loss is NaN.
        normalize: Divide rows by max(L2 norm, 1e-12) first. A row whose norm is below 1e-12 gets gradient 0. Without
            ``normalize``, rows whose squares overflow the accumulation type (about 1e19 in float32) count as not
            finite.
        reduction: "mean" over anchors, "sum", or "none" for the losses (N,). Mean and sum over no anchors are 0.
        return_stats: Also return :class:`HSDStats`.

    Returns:
        The loss, () or (N,), in the input dtype; with ``return_stats`` the pair (loss, stats). The stats are
        0-dimensional tensors on the same device; nothing waits for the device until you read them. If any input element
        is NaN or Inf, losses, distances and gradients are NaN.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, device, the temperature or the reduction does not fit.

    Example:
        >>> teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> loss, stats = fused_hsd_loss(teacher, teacher, return_stats=True)
        >>> print(f"{loss:.4f} {stats.zero_negative_weight:.2f}")
        0.6931 1.00

    Source: HaDis, https://arxiv.org/abs/2401.14038. :class:`deepclust_ext.compat.HSD` replaces the class ``HSD`` of its
    published code.
    """
    check_feature_pair(teacher, student, "teacher", "student")
    temperature = check_temperature(temperature, "temperature", teacher, "teacher")
    check_bool(normalize, "normalize")
    check_bool(return_stats, "return_stats")
    check_reduction(reduction)
    if not _extension.uses_native(teacher.device.type):
        return reference.fused_hsd_loss(
            teacher,
            student,
            temperature=temperature,
            normalize=normalize,
            reduction=reduction,
            return_stats=return_stats,
        )
    if isinstance(temperature, Tensor):
        loss, stats = _with_tensor_temperature(teacher, student, temperature, normalize, reduction)
        return (loss, stats) if return_stats else loss
    outputs = call("fused_hsd_loss", teacher, student, temperature, normalize, reduction)
    loss = outputs[0]
    return (loss, HSDStats(*outputs[1].unbind())) if return_stats else loss


def _with_tensor_temperature(
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    temperature: Tensor,  # ()
    normalize: bool,
    reduction: str,
) -> tuple[Tensor, HSDStats]:
    """Mine natively and do the rest, which is small, in torch, so that autograd finds the temperature's gradient."""
    wide = torch.promote_types(teacher.dtype, torch.float32)
    pairs = batch_hard_mining(teacher.to(wide), student.to(wide), normalize=normalize)
    loss, stats = hsd_loss_of_pairs(pairs, temperature, reduction)
    return loss.to(result_dtype(teacher)), stats


def _fake(
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    temperature: float = 0.5,
    normalize: bool = True,
    reduction: str = "mean",
) -> tuple[Tensor, ...]:
    check_feature_pair(teacher, student, "teacher", "student")
    count = teacher.shape[0]
    accumulation = torch.promote_types(teacher.dtype, torch.float32)
    return (
        teacher.new_empty((count,) if reduction == "none" else ()),
        teacher.new_empty(5, dtype=accumulation),
        teacher.new_empty((2, count), dtype=torch.int64),
        teacher.new_empty((2, count), dtype=accumulation),
        teacher.new_empty((2, count), dtype=accumulation),
    )


def _fake_backward(
    grad_loss: Tensor,  # () or (N,)
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    index: Tensor,  # (2, N)
    slope: Tensor,  # (2, N)
    inverse_norm: Tensor,  # (2, N)
    normalize: bool,
    reduction: str,
    want_teacher: bool,
    want_student: bool,
) -> tuple[Tensor, Tensor]:
    return fake_pair_gradient(teacher, student, want_teacher, want_student)


if _extension.NATIVE_DEVICES:
    torch.library.register_fake("deepclust_ext::fused_hsd_loss", _fake)
    torch.library.register_fake("deepclust_ext::fused_hsd_loss_backward", _fake_backward)
