"""fused_contrastive_loss against its full-matrix form, eager and compiled, and the NT-Xent losses of public packages.

Rows of a case are those of one view, B. All forms but the queue's compare 2 B rows with each other. lightly and
pytorch-metric-learning have the plain form only; the latter compares every positive pair with every negative one,
(2 B)^3 values, and so ends at 256 rows. On a GPU the plain form can be had from torch's flex_attention and from memeff
too, without a 2 B x 2 B matrix. siglip-kernel's loss is another one, of as many scores, and is checked by its own
definition.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention
from torch.nn.functional import logsigmoid, normalize

from benchmarks.clock import Function
from benchmarks.floors import CUDA_SIZES
from benchmarks.floors.contrastive import gradient_work, loss_work
from benchmarks.harness import Case, Provider, Yardstick, convert, find_fault
from benchmarks.inputs import CHECKED_ROWS, CLUSTERS
from deepclust_ext import fused_contrastive_loss, reference

MODES = ("forward", "backward", "both")
TRUTH = reference.fused_contrastive_loss
FOLLOWS_PRECISION = True

PROVIDERS = {
    "ours": Provider(lambda: fused_contrastive_loss),
    "reference": Provider(lambda: reference.fused_contrastive_loss),
    "compiled reference": Provider(
        lambda: torch.compile(reference.fused_contrastive_loss, dynamic=False), compiled=True
    ),
}

TEMPERATURE = 0.5  # of our op where a case does not say otherwise
QUEUE = 65536  # rows, as in MoCo
SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0  # where SigLIP begins


def load_lightly() -> Function:
    """Return lightly's loss."""
    from lightly.loss.ntx_ent_loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)  # type: ignore[no-any-return]


def load_metric_learning() -> Function:
    """Return the loss of pytorch-metric-learning."""
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))  # type: ignore[no-any-return]


@cache
def all_others(rows: int, device: torch.device) -> BlockMask:
    """Return for every row all but itself."""
    return create_block_mask(lambda batch, head, row, other: row != other, None, None, rows, rows, device)


def attention_loss(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
    others: BlockMask,  # (2B, 2B)
) -> Tensor:
    """Return NT-Xent by the log-sum-exp of attention's scores; its output, of values that are all 0, is not used."""
    rows = normalize(torch.cat([z_a, z_b]), dim=1)
    values = rows.new_zeros(1, 1, len(rows), 16)  # the fewest columns that its kernels take
    heads = rows[None, None]
    _, sums = flex_attention(
        heads, heads, values, block_mask=others, scale=1 / TEMPERATURE, return_aux=AuxRequest(lse=True)
    )
    assert sums.lse is not None
    positive = (rows * rows.roll(len(z_a), 0)).sum(dim=1) / TEMPERATURE
    return (sums.lse[0, 0] - positive).mean()


def load_flex_attention() -> Function:
    """Return torch's attention kernels, made to compute NT-Xent; on the CPU these have no gradient."""
    compiled = torch.compile(attention_loss, dynamic=False)

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        return compiled(z_a, z_b, all_others(2 * len(z_a), z_a.device))

    return loss


def load_memeff() -> Function:
    """Return memeff's InfoNCE of queries with documents and queries, one way and the other: together NT-Xent."""
    from memeff import MemoryEfficientQwen3Loss

    one_way = MemoryEfficientQwen3Loss(
        temperature=TEMPERATURE,
        margin=2.0,  # cosines differ by no more: no negative is left out as too similar
        use_qq_negatives=True,
        stable=False,  # else gradients are larger than those of the loss
    )

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        return (one_way(z_a, z_b) + one_way(z_b, z_a)) / 2  # type: ignore[no-any-return]

    return loss


def all_with_partners(
    z_a: Tensor,  # (B, D)
    z_b: Tensor,  # (B, D)
) -> tuple[Tensor, Tensor]:
    """Return the normalized rows of both views, (2B, D), and for each the same sample's in the other view."""
    rows = normalize(torch.cat([z_a, z_b]), dim=1)
    return rows, rows.roll(len(z_a), 0)


def sigmoid_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Return SigLIP's loss of all rows with all partners, by its definition."""
    rows, partners = all_with_partners(z_a, z_b)
    scores = rows @ partners.T * SIGMOID_SCALE + SIGMOID_BIAS
    signs = 2 * torch.eye(len(rows), dtype=rows.dtype, device=rows.device) - 1
    return -logsigmoid(signs * scores).sum() / len(rows)


def load_siglip_kernel() -> Function:
    """Return siglip-kernel's loss of the same rows; it computes its gradient in the forward pass."""
    from siglip_kernel import fused_siglip_loss

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        rows, partners = all_with_partners(z_a, z_b)
        scale, bias = (rows.new_tensor(x, dtype=torch.float32) for x in (math.log(SIGMOID_SCALE), SIGMOID_BIAS))
        return fused_siglip_loss(rows, partners, scale, bias)  # type: ignore[no-any-return]

    return loss


def check_sigmoid_loss(loss: Tensor, inputs: tuple[Tensor, ...], _: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a loss or its gradients by the definition of SigLIP's, or None."""

    def results(loss: Tensor, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(loss, inputs)
        return {"output": loss.detach(), **{f"gradient of input {i}": x for i, x in enumerate(gradients)}}

    naive, exact = (tuple(convert(x, dtype) for x in inputs) for dtype in (inputs[0].dtype, torch.float64))
    budget, truth = (results(sigmoid_loss(*x), x) for x in (naive, exact))
    return find_fault(results(loss, inputs), budget, truth, inputs[0].dtype)


def two_views(rows: int, dims: int) -> tuple[Tensor, Tensor]:
    """Return two noisy views (rows, dims) of independent samples, both requiring their gradients."""
    samples, noise_a, noise_b = torch.randn(3, rows, dims, generator=torch.Generator().manual_seed(0))
    return (samples + noise_a / 2).requires_grad_(), (samples + noise_b / 2).requires_grad_()


def views_and_classes(rows: int, dims: int) -> tuple[Tensor, ...]:
    """Return two views and soft assignments (rows, CLUSTERS) of each, which require gradients too."""
    logits = torch.randn(2, rows, CLUSTERS, generator=torch.Generator().manual_seed(1))
    return (*two_views(rows, dims), *(classes.requires_grad_() for classes in logits.softmax(dim=2)))


def query_key_queue(rows: int, dims: int) -> tuple[Tensor, ...]:
    """Return queries, which alone require their gradient, keys and a queue (QUEUE, dims)."""
    query, key = two_views(rows, dims)
    return query, key.detach(), torch.randn(QUEUE, dims, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def one_product(z_a: Tensor, z_b: Tensor, queue: Tensor | None = None, **_: object) -> None:
    """Compute the products of all anchors with all rows among which their negatives are."""
    if queue is not None:
        torch.mm(z_a, queue.T)
        return
    rows = torch.cat([z_a, z_b])
    torch.mm(rows, rows.T)


def one_product_flops(z_a: Tensor, z_b: Tensor, queue: Tensor | None = None, **_: object) -> int:
    """Return its floating-point operations."""
    pairs = 4 * z_a.shape[0] * z_b.shape[0] if queue is None else z_a.shape[0] * queue.shape[0]
    return 2 * pairs * z_a.shape[1]


YARDSTICK = Yardstick("one product", one_product, one_product_flops)


_CUBIC = "skipped: several arrays of (2 B)^3 float32 values, 4.3 GB each and more"
_SQUARE = "skipped: several 2 B x 2 B float32 matrices of {:.2g} GB each"

FORMS: dict[str, dict[str, Any]] = {
    "plain": {
        "make": two_views,
        "rivals": {"lightly": Provider(load_lightly), "pytorch-metric-learning": Provider(load_metric_learning)},
    },
    "hard": {
        "make": two_views,
        "options": {"hardness": 1.0},
        "beside": {"ours, hardness 0": fused_contrastive_loss},
    },
    "sharp": {"make": two_views, "options": {"temperature": 0.02}},
    "classes": {"make": views_and_classes, "keywords": ("class_a", "class_b")},
    "queue": {
        "make": query_key_queue,
        "keywords": ("queue",),
        "options": {"temperature": 0.07},  # as in MoCo
        "works": {"forward": partial(loss_work, queue=QUEUE), "backward": partial(gradient_work, queue=QUEUE)},
    },
}


def make_case(form: str, rows: int, dims: int, *, too_large_for: Sequence[str] = (), **changes: Any) -> Case:
    """Return a case of one of FORMS, which some providers would need too much memory for."""
    skip = dict.fromkeys(too_large_for, _SQUARE.format(16e-9 * rows * rows))
    if form == "plain" and rows > 256:
        skip["pytorch-metric-learning"] = _CUBIC
    return Case(form, rows, dims, **{**FORMS[form], **changes}, skip=skip)


CASES = [
    *(make_case("plain", rows, 128) for rows in (128, 256, 512, 1024, 2048, 4096)),
    *(make_case(form, rows, 128) for form in ("hard", "classes") for rows in (256, 2048)),
    make_case("sharp", 2048, 128),
    make_case("queue", 256, 128),
    # The memory curve. Eager forms hold some four matrices at a time, the compiled one two: 16 GB are enough for these.
    make_case("plain", 8192, 128, memory_only=True),
    make_case("plain", 16384, 128, memory_only=True, too_large_for=("reference", "lightly")),
    make_case("plain", 32768, 128, memory_only=True, too_large_for=("reference", "compiled reference", "lightly")),
]
SERIES = [make_case("plain", rows, 128) for rows in (128, 512, 2048)]
CUDA_RIVALS = {
    **FORMS["plain"]["rivals"],
    "flex_attention": Provider(load_flex_attention, compiled=True),
    "memeff": Provider(load_memeff),
    "siglip-kernel, sigmoid loss": Provider(load_siglip_kernel, check=check_sigmoid_loss),
}
CUDA_CASES = [
    *(
        make_case(
            "plain",
            count // 2,
            dims,
            rivals=CUDA_RIVALS,
            checked_rows=CHECKED_ROWS // 2 if count > CHECKED_ROWS else None,
        )
        for count, dims in CUDA_SIZES
    ),
    *(make_case(form, 2048, 128) for form in ("hard", "sharp", "classes")),
    make_case("queue", 256, 128),
]
WORK = {"forward": loss_work, "backward": gradient_work}
