"""fused_contrastive_loss: NT-Xent and its hardness-weighted, debiased, class-weighted and queue forms in one op."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import (
    check_feature_pair,
    check_like,
    check_non_negative,
    check_positive,
    check_reduction,
    check_share,
)


def fused_contrastive_loss(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    *,
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
) -> Tensor:
    r"""Tell every anchor's positive from its negatives, the hard ones weighing more, without any N x N matrix.

    Two views: all 2B rows of ``z_a`` and ``z_b`` are anchors. The positive of a row is its other view, its negatives
    are the other 2B - 2 rows. With a ``queue`` (MoCo form) the anchors are ``z_a``, the positives ``z_b``, and the
    negatives are the rows of the queue. With rows z, divided by their L2 norm if ``normalize``, and class vectors c:

    .. math::
        s_{ij} = z_i \cdot z_j / temperature + c_i \cdot c_j / class\_temperature \qquad
        loss_i = -s_{ip} + \log(\exp(s_{ip}) + G_i)

    where p is the positive and, with R negatives, :math:`\beta` = ``hardness`` and :math:`\tau` = ``debias``,

    .. math::
        G_i = R \sum_{neg} \exp((1 + \beta) s_{ij}) / \sum_{neg} \exp(\beta s_{ij}) \qquad
        G_i \leftarrow \max((G_i - \tau R \exp(s_{ip})) / (1 - \tau), R \exp(-1 / temperature))

    the second step for :math:`\tau > 0` only. With ``hardness`` = 0, G is the plain sum: NT-Xent, as in SimCLR, and
    with a queue InfoNCE, as in MoCo. With class vectors every pair is weighted by
    :math:`\exp(c_i \cdot c_j / class\_temperature)`, as in CLC: negatives that share the anchor's cluster, the hard
    ones, weigh more. The gradient goes through all weights, to everything that requires one, the queue included.

    Half-precision inputs are computed in float32; under autocast inputs are cast to float32, as for torch's own losses.
    Scores may be of any size, so any temperature is safe. Results do not depend on the number of threads. Second
    derivatives raise ``RuntimeError``.

    Args:
        z_a: Features (B, D) of one view, float16, bfloat16, float32 or float64. B may be 0 or 1.
        z_b: Features (B, D) of the other view, row i being the same sample; same dtype and device.
        temperature: Divides the cosines; above 0.
        hardness: How much the hardest negatives are preferred, at least 0. Published values are 0.5 to 2.
        debias: Assumed probability that a negative is of the anchor's class, in [0, 1).
        class_a: Class vectors (B, K) of ``z_a``, such as soft cluster assignments; not normalized. Same dtype and
            device as ``z_a``; with ``class_b``.
        class_b: Class vectors (B, K) of ``z_b``.
        class_temperature: Divides the products of class vectors; above 0.
        queue: Negatives (M, D) for all anchors. M may be 0.
        class_queue: Class vectors (M, K) of the queue; required with ``queue`` and class vectors.
        normalize: Divide the rows of ``z_a``, ``z_b`` and ``queue`` by max(L2 norm, 1e-12) first. Without it, rows
            whose squares over ``temperature`` overflow the accumulation type count as not finite. A row whose norm is
            below 1e-12 has no direction and gets gradient 0, where torch's ``normalize`` gives it 1e12 times what
            comes in.
        reduction: "mean" over anchors, "sum", or "none" for the losses of all anchors: (2B,), ``z_a`` first, or with a
            queue (B,). Mean and sum of no anchor are 0, as is the loss of an anchor without negatives.

    Returns:
        The loss, in the input dtype. If any input element is NaN or Inf, losses and gradients are NaN.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, device or number does not fit, or class vectors are given for a part of the rows only.

    Example:
        >>> views = torch.eye(3), torch.eye(3)
        >>> print(f"{fused_contrastive_loss(*views, temperature=1.0):.4f}")  # log(1 + 4 / e)
        0.9048

    Source: NT-Xent, https://arxiv.org/abs/2002.05709; hardness and debias, https://arxiv.org/abs/2010.04592; queue,
    https://arxiv.org/abs/1911.05722; class weights, CLC, https://arxiv.org/abs/2306.05439.
    """
    check_arguments(z_a, z_b, temperature, hardness, debias, class_a, class_b, class_temperature, queue, class_queue)
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
    loss: Tensor = torch.ops.deepclust_ext.fused_contrastive_loss.default(
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
    )[0]
    return loss


def check_arguments(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    temperature: float,
    hardness: float,
    debias: float,
    class_a: Tensor | None,  # (B, K)
    class_b: Tensor | None,  # (B, K)
    class_temperature: float,
    queue: Tensor | None,  # (M, D)
    class_queue: Tensor | None,  # (M, K)
) -> None:
    """Raise the errors of the contract."""
    check_feature_pair(z_a, z_b, "z_a", "z_b")
    check_positive(temperature, "temperature")
    check_non_negative(hardness, "hardness")
    check_share(debias, "debias")
    check_positive(class_temperature, "class_temperature")
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
) -> tuple[Tensor, Tensor]:
    check_arguments(z_a, z_b, temperature, hardness, debias, class_a, class_b, class_temperature, queue, class_queue)
    anchors = z_a.shape[0] * (2 if queue is None else 1)
    accumulation = torch.promote_types(z_a.dtype, torch.float32)
    return (
        z_a.new_empty((anchors,) if reduction == "none" else ()),
        z_a.new_empty((4, anchors), dtype=accumulation),
    )


def _fake_backward(
    grad_loss: Tensor,  # () or (2B,) or with a queue (B,)
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    row_values: Tensor,  # (4, 2B) or with a queue (4, B)
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


if _extension.NATIVE_DEVICES:
    torch.library.register_fake("deepclust_ext::fused_contrastive_loss", _fake)
    torch.library.register_fake("deepclust_ext::fused_contrastive_loss_backward", _fake_backward)
