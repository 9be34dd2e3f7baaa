"""fused_contrastive_loss: NT-Xent and its hardness-weighted, debiased, class-weighted and queue forms in one op."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import (
    check_bool,
    check_divisor,
    check_feature_pair,
    check_hardness,
    check_like,
    check_reduction,
    check_share,
    check_temperature,
    result_dtype,
)
from deepclust_ext.ops._dispatch import call


def fused_contrastive_loss(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    *,
    temperature: float | Tensor = 0.5,  # a tensor ()
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
    r"""Contrast every anchor's positive with its negatives, where hard ones may weigh more, without any N x N matrix.

    Without a ``queue`` all 2B rows of ``z_a`` and ``z_b`` are anchors. The positive of a row is its other view, its
    negatives are the other 2B - 2 rows. With a ``queue`` (as in MoCo) the anchors are ``z_a``, the positives ``z_b``,
    and the negatives are the rows of the queue. Let z be the rows, divided by their L2 norm if ``normalize``, and c the
    class vectors:

    .. math::
        s_{ij} = z_i \cdot z_j / \tau + c_i \cdot c_j / \tau_c \qquad
        loss_i = -s_{ip} + \log(\exp(s_{ip}) + G_i)

    where :math:`\tau` is ``temperature``, :math:`\tau_c` is ``class_temperature`` and p is the positive. With R
    negatives, :math:`\beta` = ``hardness`` and :math:`\tau^+` = ``debias`` (which is no temperature),

    .. math::
        G_i = R \sum_{neg} \exp((1 + \beta) s_{ij}) / \sum_{neg} \exp(\beta s_{ij}) \qquad
        G_i \leftarrow \max((G_i - \tau^+ R \exp(s_{ip})) / (1 - \tau^+), R \exp(-1 / \tau))

    where the second step is made only for :math:`\tau^+ > 0`. With ``hardness`` = 0, G is the plain sum: the loss is
    NT-Xent, as in SimCLR, or with a queue InfoNCE, as in MoCo. Class vectors weight every pair by :math:`\exp(c_i \cdot
    c_j / \tau_c)`, as in CLC. So negatives that share the anchor's cluster, the hard ones, weigh more. The gradient
    goes through all weights to every input that requires one, including the queue.

    Half-precision inputs are computed in float32; under autocast inputs are cast to float32, as for torch's own losses.
    No temperature is too low: exponentials do not overflow. Results do not depend on the number of threads. Second
    derivatives raise ``RuntimeError``.

    Args:
        z_a: Features (B, D) of one view, float16, bfloat16, float32 or float64. B may be 0 or 1.
        z_b: Features (B, D) of the other view, row i being the same sample; same dtype and device.
        temperature: Divides the cosines; 1e-30 to 1e30. It may be a floating tensor (), such as a learned parameter,
            which receives a gradient; on the device of the rows, or on the CPU. This takes the memory of another copy
            of the rows. A tensor that is not positive is an error on the CPU. On CUDA and in compiled code, where
            checking would wait for the device, the loss is NaN.
        hardness: How much more near negatives weigh than far ones, 0 to 1e30, and at most 1e36 times the temperature.
            Published values are 0.5 to 2.
        debias: τ⁺, the assumed probability that a negative belongs to the anchor's class, in [0, 1).
        class_a: Class vectors (B, K) of ``z_a``, such as soft cluster assignments; they are not normalized. Same dtype
            and device as ``z_a``; given together with ``class_b``.
        class_b: Class vectors (B, K) of ``z_b``.
        class_temperature: Divides the products of class vectors; 1e-30 to 1e30.
        queue: Negatives (M, D) for all anchors. M may be 0.
        class_queue: Class vectors (M, K) of the queue; required with ``queue`` and class vectors.
        normalize: Divide the rows of ``z_a``, ``z_b`` and ``queue`` by max(L2 norm, 1e-12) first. A row whose norm is
            below 1e-12 has no direction and gets gradient 0; torch's ``normalize`` would multiply its gradient by 1e12.
            Without ``normalize``, rows whose squares over ``temperature`` overflow the accumulation type count as not
            finite.
        reduction: "mean" over anchors, "sum", or "none" for the losses of all anchors: (2B,), ``z_a`` first, or with a
            queue (B,). The loss of an anchor without negatives is 0, and so are mean and sum over no anchors.

    Returns:
        The loss, in the input dtype. If any input element is NaN or Inf, losses and gradients are NaN.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, device or number does not fit, or only some of the rows have class vectors.

    Example:
        >>> views = torch.eye(3), torch.eye(3)
        >>> print(f"{fused_contrastive_loss(*views, temperature=1.0):.4f}")  # log(1 + 4 / e)
        0.9048

    Source: NT-Xent, https://arxiv.org/abs/2002.05709; hardness and debias, https://arxiv.org/abs/2010.04592; queue,
    https://arxiv.org/abs/1911.05722; class weights, CLC, https://arxiv.org/abs/2306.05439.
    """
    check_contrastive_tensors(z_a, z_b, class_a, class_b, queue, class_queue)
    temperature = check_temperature(temperature, "temperature", z_a, "z_a")
    hardness = check_hardness(hardness, temperature)
    debias, class_temperature = check_share(debias, "debias"), check_divisor(class_temperature, "class_temperature")
    check_bool(normalize, "normalize")
    check_reduction(reduction)
    if not _extension.uses_native(z_a.device.type):
        return reference.fused_contrastive_loss(
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
    if isinstance(temperature, Tensor):
        return _with_tensor_temperature(
            z_a,
            z_b,
            temperature,
            hardness,
            debias,
            class_a,
            class_b,
            class_temperature,
            queue,
            class_queue,
            normalize,
            reduction,
        )
    return call(
        "fused_contrastive_loss",
        z_a,
        z_b,
        temperature,
        hardness,
        debias,
        class_a,
        class_b,
        class_temperature,
        queue,
        class_queue,
        normalize,
        reduction,
        _keeps_gradient(z_a, z_b, class_a, class_b, queue, class_queue),
    )[0]


def _keeps_gradient(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    class_a: Tensor | None,  # (B, K)
    class_b: Tensor | None,  # (B, K)
    queue: Tensor | None,  # (M, D)
    class_queue: Tensor | None,  # (M, K)
) -> bool:
    """Return whether forward computes the anchors' gradient too: if the queue and its class vectors need none.

    Then the scores of the queue are computed once, not twice. On CUDA the backward pass computes them again.
    """

    def needs_gradient(*tensors: Tensor | None) -> bool:
        return any(x is not None and x.requires_grad for x in tensors)

    return (
        queue is not None
        and z_a.device.type == "cpu"
        and torch.is_grad_enabled()
        and needs_gradient(z_a, class_a)
        and not needs_gradient(queue, class_queue)
    )


def _with_tensor_temperature(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    temperature: Tensor,  # ()
    hardness: float,
    debias: float,
    class_a: Tensor | None,  # (B, K)
    class_b: Tensor | None,  # (B, K)
    class_temperature: float,
    queue: Tensor | None,  # (M, D)
    class_queue: Tensor | None,  # (M, K)
    normalize: bool,
    reduction: str,
) -> Tensor:
    r"""Divide the rows by the square root of the temperature in torch, so that autograd finds its gradient.

    Only the scores depend on the temperature, and the lower limit of the debiased negatives. So debiasing is done here
    too. It starts from an anchor's loss l without debiasing: :math:`G / \exp(s_p) = \exp(l) - 1`.
    """
    wide = torch.promote_types(z_a.dtype, torch.float32)
    temperature = temperature.to(torch.promote_types(temperature.dtype, wide))

    def scaled(rows: Tensor) -> Tensor:
        rows = rows.to(wide)
        return (unit_rows(rows) if normalize else rows) * temperature.rsqrt()

    a, b = scaled(z_a), scaled(z_b)
    class_a, class_b, class_queue = (x if x is None else x.to(wide) for x in (class_a, class_b, class_queue))
    loss = fused_contrastive_loss(
        a,
        b,
        temperature=1.0,
        hardness=hardness,
        class_a=class_a,
        class_b=class_b,
        class_temperature=class_temperature,
        queue=queue if queue is None else scaled(queue),
        class_queue=class_queue,
        normalize=False,
        reduction="none" if debias > 0 else reduction,
    )
    num_negatives = 2 * len(z_a) - 2 if queue is None else len(queue)
    if debias > 0:
        positive = (a * b).sum(dim=1)
        if class_a is not None and class_b is not None:
            positive = positive + (class_a * class_b).sum(dim=1) / class_temperature
        if num_negatives > 0:
            loss = _debiased(loss, positive.repeat(len(loss) // max(len(a), 1)), num_negatives, temperature, debias)
        if reduction != "none":
            loss = loss.sum() / (max(len(loss), 1) if reduction == "mean" else 1)
    return loss.to(result_dtype(z_a))


def unit_rows(
    rows: Tensor,  # (N, D)
) -> Tensor:
    """Return the rows divided by max(L2 norm, 1e-12), without overflow; a row of smaller norm has no gradient."""
    # Not l2_normalize, which has torch's bits: each rounds otherwise, and for some draws of few rows debiased losses
    # are beyond their error budget with the one or with the other.
    largest = rows.detach().abs().amax(dim=1, keepdim=True)
    rows_of_one = rows / largest.masked_fill(largest == 0, 1)
    norms = torch.linalg.vector_norm(rows_of_one, dim=1, keepdim=True)
    is_short = norms.detach() * largest < 1e-12
    return torch.where(is_short, rows.detach() / 1e-12, rows_of_one / norms.masked_fill(is_short, 1))


def _debiased(
    loss: Tensor,  # (R,) without debiasing
    positive: Tensor,  # (R,) scores of the positives
    num_negatives: int,
    temperature: Tensor,  # ()
    debias: float,
) -> Tensor:
    """Return the debiased losses, (R,), with all negatives relative to the positive, in logarithms."""
    limit = math.log(num_negatives) - 1 / temperature - positive
    safe = torch.where(loss > 0, loss, 1)
    sums = safe + (-torch.expm1(-safe)).log()
    taken = debias * num_negatives * (-sums).exp()  # share of the sum
    leaves_some = (loss > 0) & (taken < 1)
    rest = sums + torch.log1p(-torch.where(leaves_some, taken, 0)) - math.log1p(-debias)
    negatives = torch.where(leaves_some & (rest > limit), rest, limit)
    return -logsigmoid(-negatives) + 0 * loss  # NaN stays


def check_contrastive_tensors(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    class_a: Tensor | None,  # (B, K)
    class_b: Tensor | None,  # (B, K)
    queue: Tensor | None,  # (M, D)
    class_queue: Tensor | None,  # (M, K)
) -> None:
    """Raise the errors of the contract."""
    check_feature_pair(z_a, z_b, "z_a", "z_b")
    if queue is not None:
        check_like(queue, "queue", z_a, "z_a", columns=z_a.shape[1])
    if class_a is None:
        for vectors, name in ((class_b, "class_b"), (class_queue, "class_queue")):
            if vectors is not None:
                raise ValueError(f"{name}: expected None, because class_a is None, got a tensor")
        return
    check_like(class_a, "class_a", z_a, "z_a", rows=z_a.shape[0])
    if class_b is None:
        raise ValueError("class_b: expected a tensor, because class_a is given, got None")
    check_like(class_b, "class_b", z_a, "z_a", rows=z_a.shape[0], columns=class_a.shape[1])
    if (queue is None) != (class_queue is None):
        expected = "None, because queue is None" if queue is None else "a tensor, because queue and class_a are given"
        raise ValueError(f"class_queue: expected {expected}, got {'a tensor' if queue is None else None}")
    if queue is not None and class_queue is not None:
        check_like(class_queue, "class_queue", z_a, "z_a", rows=queue.shape[0], columns=class_a.shape[1])


def _fake(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    temperature: float = 0.5,
    hardness: float = 0.0,
    debias: float = 0.0,
    class_a: Tensor | None = None,  # (B, K)
    class_b: Tensor | None = None,  # (B, K)
    class_temperature: float = 1.0,
    queue: Tensor | None = None,  # (M, D)
    class_queue: Tensor | None = None,  # (M, K)
    normalize: bool = True,
    reduction: str = "mean",
    keep_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    check_contrastive_tensors(z_a, z_b, class_a, class_b, queue, class_queue)
    anchors = z_a.shape[0] * (2 if queue is None else 1)
    accumulation = torch.promote_types(z_a.dtype, torch.float32)
    depth = z_a.shape[1] + (0 if class_a is None else class_a.shape[1])
    keeps = keep_gradient and queue is not None and z_a.device.type == "cpu"
    return (
        z_a.new_empty((anchors,) if reduction == "none" else ()),
        z_a.new_empty((4, anchors), dtype=accumulation),
        z_a.new_empty((anchors, depth) if keeps else (0,), dtype=accumulation),
    )


def _fake_backward(
    grad_loss: Tensor,  # () or (2B,) or with a queue (B,)
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    row_values: Tensor,  # (4, 2B) or with a queue (4, B)
    anchor_gradient: Tensor,  # (B, D + K) or empty
    temperature: float,
    hardness: float,
    class_a: Tensor | None,  # (B, K)
    class_b: Tensor | None,  # (B, K)
    class_temperature: float,
    queue: Tensor | None,  # (M, D)
    class_queue: Tensor | None,  # (M, K)
    normalize: bool,
    reduction: str,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    inputs = (z_a, z_b, class_a, class_b, queue, class_queue)
    return tuple(
        z_a.new_empty(x.shape if wanted and x is not None else (0,))
        for x, wanted in zip(inputs, output_mask, strict=True)
    )


def _fake_log_sums(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    temperature: float,
    hardness: float,
    class_a: Tensor | None,  # (B, K)
    class_b: Tensor | None,  # (B, K)
    class_temperature: float,
    queue: Tensor | None,  # (M, D)
    class_queue: Tensor | None,  # (M, K)
    normalize: bool,
) -> Tensor:
    check_contrastive_tensors(z_a, z_b, class_a, class_b, queue, class_queue)
    anchors = 2 * z_a.shape[0] + (0 if queue is None else queue.shape[0])
    return z_a.new_empty((3, anchors), dtype=torch.float64)


def _fake_backward_log_sums(
    row_values: Tensor,  # (4, 2B) or with a queue (4, 2B + M)
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    temperature: float,
    hardness: float,
    class_a: Tensor | None,  # (B, K)
    class_b: Tensor | None,  # (B, K)
    class_temperature: float,
    queue: Tensor | None,  # (M, D)
    class_queue: Tensor | None,  # (M, K)
    normalize: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    inputs = (z_a, z_b, class_a, class_b, queue, class_queue)
    return tuple(
        row_values.new_empty(x.shape if wanted and x is not None else (0,))
        for x, wanted in zip(inputs, output_mask, strict=True)
    )


if _extension.NATIVE_DEVICES:
    torch.library.register_fake("deepclust_ext::fused_contrastive_loss", _fake)
    torch.library.register_fake("deepclust_ext::fused_contrastive_loss_backward", _fake_backward)
    torch.library.register_fake("deepclust_ext::fused_contrastive_loss.log_sums", _fake_log_sums)
    torch.library.register_fake("deepclust_ext::fused_contrastive_loss_backward.log_sums", _fake_backward_log_sums)
