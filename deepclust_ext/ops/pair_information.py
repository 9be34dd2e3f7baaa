"""pair_information: how much pairs of rows agree about their clusters, with its gradient; and pair_statistics."""

import torch
from torch import Tensor

from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import (
    check_bool,
    check_divisor,
    check_dtype,
    check_like,
    check_tensor,
    fit,
)


def pair_information(
    rows: Tensor,  # (2B, E)
    weight: Tensor,  # (K, E)
    teacher_rows: Tensor,  # (2B, E)
    teacher_weight: Tensor,  # (K, E)
    distribution: Tensor,  # (K,)
    pair_weights: Tensor,  # (B,)
    *,
    beta: float = 0.6,
    temperature: float = 0.1,
    want_rows: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Compute the weighted pointwise mutual information of pairs of rows and its gradient, both at once.

    Row i and row i + B are a pair, of the student and of its teacher alike. With i' the other row of a pair,
    :math:`q_i = softmax(W x_i / \tau)` the student's shares of K clusters, :math:`p_i` those of the teacher,
    :math:`\tilde p` the teacher's distribution over clusters and :math:`w_i` the weight of a pair:

    .. math::
        information = \frac{1}{2B} \sum_{i=1}^{2B} w_i \log \sum_k \frac{(q_{ik} \, p_{i'k})^\beta}{\tilde p_k}

    No B x K matrix of shares is kept. On the CPU logits are computed block by block, and turned into their gradient
    while they are in the cache. Logarithms keep it finite where shares vanish. Shares of the distribution below the
    smallest normal number count as that. The same bits for any number of threads.

    Args:
        rows: The student's rows (2B, E), float16, bfloat16, float32 or float64; E > 0. B may be 0.
        weight: The student's last layer (K, E), of the same dtype and device as all others; K > 0.
        teacher_rows: The teacher's rows (2B, E).
        teacher_weight: The teacher's last layer (K, E).
        distribution: The running mean (K,) of the teacher's shares.
        pair_weights: The weight (B,) of each pair.
        beta: The exponent, 1e-30 to 1e30. The published value is 0.6.
        temperature: Divides the logits; 1e-30 to 1e30. The published value is 0.1.
        want_rows: Whether the gradient by the rows is wanted.

    Returns:
        The information, (), 0 of no pairs; its gradient by ``rows``, (2B, E), or (0, E) if it is not wanted; and its
        gradient by ``weight``, (K, E). All are float32, or float64 for float64, and constants to autograd. If a logit,
        a share of the distribution or a weight is NaN or Inf, all are NaN. What overflows is NaN or Inf.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, device, beta or the temperature does not fit.

    Example:
        >>> rows, weight = torch.eye(2), torch.eye(2)
        >>> half, ones = torch.full((2,), 0.5), torch.ones(1)
        >>> information, _, _ = pair_information(rows, weight, rows, weight, half, ones, beta=1.0, temperature=1.0)
        >>> print(f"{information:.4f}")
        -0.2402

    Source: TEMI, N. Adaloglou et al., Exploring the Limits of Deep Image Clustering using Pretrained Models, BMVC 2023,
    https://arxiv.org/abs/2303.17896, section 3.
    """
    _check_information(rows, weight, teacher_rows, teacher_weight, distribution, pair_weights)
    beta, temperature = check_divisor(beta, "beta"), check_divisor(temperature, "temperature")
    check_bool(want_rows, "want_rows")
    if not _extension.uses_native(rows.device.type):
        return reference.pair_information(
            rows,
            weight,
            teacher_rows,
            teacher_weight,
            distribution,
            pair_weights,
            beta=beta,
            temperature=temperature,
            want_rows=want_rows,
        )
    information, grad_rows, grad_weight = torch.ops.deepclust_ext.pair_information.default(
        rows, weight, teacher_rows, teacher_weight, distribution, pair_weights, beta, temperature, want_rows
    )
    return information, grad_rows, grad_weight


def pair_statistics(
    rows: Tensor,  # (2B, E)
    weight: Tensor,  # (K, E)
    *,
    temperature: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Sum up the shares of clusters of pairs of rows, without any B x K matrix.

    With shares :math:`p_i = softmax(W x_i / \tau)` and i' the other row of a pair, i + B or i - B:

    .. math::
        sums_k = \sum_i p_{ik} \qquad agreement_i = \sum_k p_{ik} \, p_{i'k} \qquad
        largest = \frac{1}{2B} \sum_i \max_k p_{ik}

    Args:
        rows: Rows (2B, E), float16, bfloat16, float32 or float64; E > 0. B may be 0.
        weight: The last layer (K, E), of the same dtype and device, K > 0.
        temperature: Divides the logits; 1e-30 to 1e30.

    Returns:
        The sums (K,), the agreement (B,) of the pairs, and the mean of the largest shares, (), 0 of no rows. All are
        float32, or float64 for float64, and constants to autograd. If a logit is NaN or Inf, all are NaN.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, device or the temperature does not fit.

    Example:
        >>> sums, agreement, largest = pair_statistics(torch.zeros(4, 3), torch.ones(2, 3))
        >>> sums.tolist(), agreement.tolist(), largest.item()
        ([2.0, 2.0], [0.5, 0.5], 0.5)

    Source: TEMI, https://arxiv.org/abs/2303.17896, section 3.
    """
    _check_rows(rows, weight)
    temperature = check_divisor(temperature, "temperature")
    if not _extension.uses_native(rows.device.type):
        return reference.pair_statistics(rows, weight, temperature=temperature)
    sums, agreement, largest = torch.ops.deepclust_ext.pair_statistics.default(rows, weight, temperature)
    return sums, agreement, largest


def _check_rows(
    rows: Tensor,  # (2B, E)
    weight: Tensor,  # (K, E)
) -> None:
    check_tensor(rows, "rows")
    check_dtype(rows, "rows")
    if rows.dim() != 2 or rows.shape[1] == 0 or rows.shape[0] % 2 != 0:
        raise ValueError(f"rows: expected shape (2B, E) with E > 0, got {tuple(rows.shape)}")
    check_like(weight, "weight", rows, "rows", columns=rows.shape[1])
    if weight.shape[0] == 0:
        raise ValueError(f"weight: expected shape (K, E) with K > 0, got {tuple(weight.shape)}")


def _check_information(
    rows: Tensor,  # (2B, E)
    weight: Tensor,  # (K, E)
    teacher_rows: Tensor,  # (2B, E)
    teacher_weight: Tensor,  # (K, E)
    distribution: Tensor,  # (K,)
    pair_weights: Tensor,  # (B,)
) -> None:
    _check_rows(rows, weight)
    check_like(teacher_rows, "teacher_rows", rows, "rows", rows=rows.shape[0], columns=rows.shape[1])
    check_like(teacher_weight, "teacher_weight", rows, "rows", rows=weight.shape[0], columns=rows.shape[1])
    for vector, name, size in (
        (distribution, "distribution", weight.shape[0]),
        (pair_weights, "pair_weights", rows.shape[0] // 2),
    ):
        check_tensor(vector, name)
        if vector.dim() != 1 or vector.shape[0] != size:
            raise ValueError(f"{name}: expected shape ({size},), got {tuple(vector.shape)}")
        check_dtype(vector, name)
        if not fit(rows, vector):
            raise TypeError(f"{name}: expected dtype {rows.dtype} like rows, got {vector.dtype}")
        if vector.device != rows.device:
            raise ValueError(f"{name}: expected device {rows.device} like rows, got {vector.device}")


def _fake_information(
    rows: Tensor,  # (2B, E)
    weight: Tensor,  # (K, E)
    teacher_rows: Tensor,  # (2B, E)
    teacher_weight: Tensor,  # (K, E)
    distribution: Tensor,  # (K,)
    pair_weights: Tensor,  # (B,)
    beta: float = 0.6,
    temperature: float = 0.1,
    want_rows: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_information(rows, weight, teacher_rows, teacher_weight, distribution, pair_weights)
    wide = torch.promote_types(rows.dtype, torch.float32)
    shape = rows.shape if want_rows else (0, rows.shape[1])
    information, grad_rows = rows.new_empty((), dtype=wide), rows.new_empty(shape, dtype=wide)
    return information, grad_rows, weight.new_empty(weight.shape, dtype=wide)


def _fake_statistics(
    rows: Tensor,  # (2B, E)
    weight: Tensor,  # (K, E)
    temperature: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_rows(rows, weight)
    wide = torch.promote_types(rows.dtype, torch.float32)
    sizes = ((weight.shape[0],), (rows.shape[0] // 2,), ())
    sums, agreement, largest = (rows.new_empty(size, dtype=wide) for size in sizes)
    return sums, agreement, largest


if _extension.NATIVE_DEVICES:
    torch.library.register_fake("deepclust_ext::pair_information", _fake_information)
    torch.library.register_fake("deepclust_ext::pair_statistics", _fake_statistics)
