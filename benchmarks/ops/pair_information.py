"""pair_information against TEMI's formula in torch, eager and compiled, whose gradient autograd makes.

Rows of a case are those of all pairs, 2 B; dims are the features of the heads, and the clusters' number stands in its
name. All give the loss and its gradients at once, as one step of a head needs them. In `frozen`, a head without hidden
layers on frozen features, the rows need no gradient; in `hidden` they do. In the same run ours is also timed for what
the step asks of the teacher before: pair_statistics.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.clock import Function
from benchmarks.floors import WorkOf
from benchmarks.floors.pairs import CUDA_PAIRS, information_work
from benchmarks.harness import Case, Provider, Yardstick
from deepclust_ext import pair_information, reference
from deepclust_ext.ops import pair_statistics

MODES = ("forward",)
TRUTH = reference.pair_information
FOLLOWS_PRECISION = False
WORK: Mapping[str, WorkOf] = {}  # every case has its own

BETA, TEMPERATURE = 0.6, 0.1  # as published


def plain_formula(
    rows: Tensor,  # (2B, E)
    weight: Tensor,  # (K, E)
    teacher_rows: Tensor,  # (2B, E)
    teacher_weight: Tensor,  # (K, E)
    distribution: Tensor,  # (K,)
    pair_weights: Tensor,  # (B,)
) -> Tensor:
    """Write down all shares, as the authors' code does."""
    students = (rows @ weight.T / TEMPERATURE).softmax(dim=1)
    teachers = (teacher_rows @ teacher_weight.T / TEMPERATURE).softmax(dim=1)
    joint = ((students * teachers.roll(len(pair_weights), 0)) ** BETA / distribution).sum(dim=1)
    return (pair_weights.repeat(2) * joint.log()).mean()


def with_gradients(formula: Function) -> Function:
    """Return a function that calls the formula and has autograd make the gradients that are wanted."""

    def run(
        rows: Tensor,  # (2B, E)
        weight: Tensor,  # (K, E)
        *teacher: Tensor,
        want_rows: bool,
        **named: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        leaves = rows.detach().requires_grad_(want_rows), weight.detach().requires_grad_()
        information = formula(*leaves, *teacher, **named)
        *grad_rows, grad_weight = torch.autograd.grad(information, leaves if want_rows else leaves[1:])
        return information.detach(), grad_rows[0] if want_rows else rows[:0], grad_weight

    return run


PROVIDERS = {
    "ours": Provider(lambda: pair_information),
    "plain formula": Provider(lambda: with_gradients(plain_formula)),
    "compiled plain formula": Provider(
        lambda: with_gradients(torch.compile(plain_formula, dynamic=False)), compiled=True
    ),
    "reference": Provider(lambda: reference.pair_information),
}


def all_products(
    rows: Tensor,  # (2B, E)
    weight: Tensor,  # (K, E)
    teacher_rows: Tensor,  # (2B, E)
    teacher_weight: Tensor,  # (K, E)
    *,
    want_rows: bool,
    **_: Tensor,
) -> None:
    """Multiply as often as the gradients need it: both logits, gradient by the layer and, if wanted, by the rows."""
    logits = rows @ weight.T
    torch.mm(teacher_rows, teacher_weight.T)
    torch.mm(logits.T, rows)
    if want_rows:
        torch.mm(logits, weight)


def product_flops(rows: Tensor, weight: Tensor, *_: Tensor, want_rows: bool, **__: Tensor) -> int:
    """Return the floating-point operations of these products."""
    return 2 * (3 + want_rows) * rows.numel() * weight.shape[0]


YARDSTICK = Yardstick("the products", all_products, product_flops)


def student_and_teacher(clusters: int, rows: int, dims: int) -> tuple[Tensor, ...]:
    """Return unit rows around unit prototypes, both rows of a pair near the same one, and a teacher."""
    generator = torch.Generator().manual_seed(0)

    def near(centers: Tensor, spread: float) -> Tensor:
        return normalize(centers + spread * normalize(torch.randn(centers.shape, generator=generator), dim=1), dim=1)

    weight = normalize(torch.randn(clusters, dims, generator=generator), dim=1)
    places = torch.randint(clusters, (rows // 2,), generator=generator).repeat(2)
    features = near(weight[places], 1.0)
    teacher_weight = near(weight, 0.3)
    shares = (features @ teacher_weight.T / TEMPERATURE).softmax(dim=1)
    first, second = shares.chunk(2)
    return features, weight, near(features, 0.1), teacher_weight, shares.mean(dim=0), (first * second).sum(dim=1)


FORMS = {"frozen": False, "hidden": True}  # whether the rows' gradient is wanted


def statistics(rows: Tensor, weight: Tensor, teacher_rows: Tensor, teacher_weight: Tensor, *_: Tensor) -> Any:
    """Return the teacher's statistics."""
    return pair_statistics(teacher_rows, teacher_weight)


def make_case(form: str, rows: int, clusters: int, dims: int) -> Case:
    """Return a case of one of FORMS, named by the number of clusters, rows of all pairs and features."""
    return Case(
        f"{form}-k{clusters}",
        rows,
        dims,
        partial(student_and_teacher, clusters),
        keywords=("weight", "teacher_rows", "teacher_weight", "distribution", "pair_weights"),
        options={"want_rows": FORMS[form]},
        beside={"ours, pair_statistics": statistics},
        works={"forward": partial(information_work, clusters=clusters, want_rows=FORMS[form])},
    )


CASES = [
    *(make_case("frozen", 2048, clusters, 384) for clusters in (10, 100, 1000)),
    make_case("frozen", 2048, 1000, 768),
    make_case("hidden", 2048, 1000, 256),
]
SERIES = [make_case("frozen", rows, 1000, 384) for rows in (512, 2048, 8192)]
CUDA_CASES = [make_case("hidden" if want_rows else "frozen", *sizes) for *sizes, want_rows in CUDA_PAIRS]
