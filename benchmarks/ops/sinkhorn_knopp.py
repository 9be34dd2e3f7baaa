"""sinkhorn_knopp against SwAV's loop, eager and compiled, its logarithmic form, and POT's batched solver.

Rows and dims of a case are samples and clusters. All providers make the same iterations from the same start, and return
the same assignments.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.clock import Function
from benchmarks.floors import WorkOf
from benchmarks.floors.sinkhorn import assignment_work, gradient_work
from benchmarks.harness import Case, Provider, Yardstick
from deepclust_ext import reference, sinkhorn_knopp

MODES = ("forward",)
TRUTH = reference.sinkhorn_knopp
FOLLOWS_PRECISION = False
WORK: Mapping[str, WorkOf] = {}  # every case has its own

EPSILON = 0.05  # as in SwAV; also the default of our op
FEATURES = 128
PROBLEMS = 64  # of the batched case


def swav_loop(
    scores: Tensor,  # (..., N, K)
    *,
    num_iters: int,
    epsilon: float = EPSILON,
    differentiable: bool = False,
    out: Tensor | None = None,  # (..., N, K)
) -> Tensor:
    """Do what everybody copies from SwAV, for batches too, in the dtype of the scores; out of place for a gradient.

    With `out` it takes no other memory of that size.
    """
    divide = Tensor.div if differentiable else Tensor.div_
    q = (scores / epsilon).exp() if out is None else torch.div(scores, epsilon, out=out).exp_()
    q = q.transpose(-1, -2)
    num_clusters, num_samples = q.shape[-2:]
    q = divide(q, q.sum(dim=(-1, -2), keepdim=True))
    for _ in range(num_iters):
        q = divide(q, q.sum(dim=-1, keepdim=True))
        q = divide(q, num_clusters)
        q = divide(q, q.sum(dim=-2, keepdim=True))
        q = divide(q, num_samples)
    q = q * num_samples if out is None else q.mul_(num_samples)
    return q.transpose(-1, -2)


def careful_swav_loop(scores: Tensor, *, out: Tensor | None = None, **options: Any) -> Tensor:
    """Run the loop in float32 at least: in half precision it gives NaN for these scores; see sinkhorn_proof.py."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if out is not None and out.dtype != wide.dtype:
        return out.copy_(swav_loop(wide, **options))
    return swav_loop(wide, out=out, **options).to(scores.dtype)


def load_pot() -> Function:
    """Return POT's batched logarithmic iterations, by themselves, without the cost that `ot.batch.solve_batch` adds.

    They begin with the first marginal, so clusters are its rows. At the first iteration and every tenth it measures how
    well the marginals are met, which cannot be switched off; with a tolerance of 0 it never stops there.
    """
    from ot.batch import bregman_log_projection_batch

    def solve(scores: Tensor, *, num_iters: int, epsilon: float = EPSILON, differentiable: bool = False) -> Tensor:
        batch, (num_samples, num_clusters) = scores.shape[:-2], scores.shape[-2:]
        logits = scores.transpose(-1, -2).reshape(-1, num_clusters, num_samples) / epsilon
        solution = bregman_log_projection_batch(
            logits,
            logits.new_full(logits.shape[:2], 1 / num_clusters),
            logits.new_full(logits.shape[::2], 1 / num_samples),
            max_iter=num_iters,
            tol=0,
            grad="autodiff" if differentiable else "detach",
        )
        plan: Tensor = solution["T"]
        return (plan * num_samples).transpose(-1, -2).reshape(*batch, num_samples, num_clusters)

    return solve


PROVIDERS = {
    "ours": Provider(lambda: sinkhorn_knopp),
    "SwAV loop": Provider(lambda: careful_swav_loop),
    "compiled SwAV loop": Provider(lambda: torch.compile(careful_swav_loop, dynamic=False), compiled=True),
    "reference": Provider(lambda: reference.sinkhorn_knopp),
    "POT": Provider(load_pot),
}


def random_scores(problems: tuple[int, ...], samples: int, clusters: int) -> tuple[Tensor]:
    """Return cosines (*problems, samples, clusters) of independent features and prototypes."""
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(*problems, samples, FEATURES, generator=generator), dim=-1)
    prototypes = normalize(torch.randn(*problems, clusters, FEATURES, generator=generator), dim=-1)
    return (features @ prototypes.transpose(-1, -2),)


def scores_of_one(samples: int, clusters: int) -> tuple[Tensor]:
    """Return the scores of a single problem."""
    return random_scores((), samples, clusters)


def scores_and_memory(samples: int, clusters: int) -> tuple[Tensor, Tensor]:
    """Return the scores of a single problem, and memory for its assignments that the process has already."""
    (scores,) = scores_of_one(samples, clusters)
    return scores, torch.zeros_like(scores)


def scores_of_many(samples: int, clusters: int) -> tuple[Tensor]:
    """Return the scores of PROBLEMS problems."""
    return random_scores((PROBLEMS,), samples, clusters)


def scores_with_gradient(samples: int, clusters: int) -> tuple[Tensor]:
    """Return the scores of a single problem, which require their gradient."""
    return (scores_of_one(samples, clusters)[0].requires_grad_(),)


def clustered_scores(samples: int, clusters: int) -> tuple[Tensor]:
    """Return cosines of prototypes with features around them, each of a prototype drawn at random: mostly about 0.9."""
    generator = torch.Generator().manual_seed(0)
    prototypes = normalize(torch.randn(clusters, FEATURES, generator=generator), dim=1)
    own = prototypes[torch.randint(clusters, (samples,), generator=generator)]
    noise = torch.randn(samples, FEATURES, generator=generator) / FEATURES**0.5
    return (normalize(own + noise / 2, dim=1) @ prototypes.T,)


YARDSTICK = Yardstick(
    "one exponential", lambda scores, **_: scores.detach().exp(), lambda scores, **_: int(scores.numel())
)


_OVERFLOWS = "skipped: float32 overflows at this epsilon"

FORMS: dict[str, dict[str, Any]] = {
    "t3": {"make": scores_of_one, "options": {"num_iters": 3}},
    "t50": {"make": scores_of_one, "options": {"num_iters": 50}},
    "out": {
        "make": scores_and_memory,
        "options": {"num_iters": 3},
        "keywords": ("out",),
        "skip": {"POT": "skipped: takes no memory for its result"},
    },
    "batch": {"make": scores_of_many, "options": {"num_iters": 3}},
    "gradient": {
        "make": scores_with_gradient,
        "options": {"num_iters": 3, "differentiable": True},
        "modes": ("forward", "backward", "both"),
    },
    "sharp": {
        "make": clustered_scores,
        "options": {"num_iters": 3, "epsilon": 0.005},
        "skip": {"SwAV loop": _OVERFLOWS, "compiled SwAV loop": _OVERFLOWS},
    },
}


def make_case(form: str, samples: int, clusters: int, **changes: Any) -> Case:
    """Return a case of one of FORMS."""
    size = {"problems": PROBLEMS if form == "batch" else 1, "num_iters": FORMS[form]["options"]["num_iters"]}
    works: dict[str, WorkOf] = {"forward": partial(assignment_work, **size)}
    if form == "gradient":
        works["backward"] = partial(gradient_work, **size)
    # Every iteration ends with new column scales, without which the next cannot begin.
    return Case(form, samples, clusters, **FORMS[form], works=works, passes=size["num_iters"] + 1, **changes)


CASES = [
    make_case("t3", 256, 10),
    make_case("batch", 256, 16),
    make_case("t3", 1024, 300),
    make_case("t3", 4096, 1000),
    make_case("t3", 4096, 3000),
    make_case("t3", 16384, 1000),
    make_case("out", 16384, 1000),
    make_case("t50", 4096, 1000),
    make_case("gradient", 4096, 1000),
    make_case("sharp", 4096, 1000),
]
SERIES = [make_case("t3", samples, 1000) for samples in (1024, 4096, 16384)]
CUDA_CASES = [
    make_case("t3", 256, 10),
    make_case("batch", 256, 16),
    make_case("t3", 4096, 1000),
    make_case("t3", 65536, 1000),
    make_case("t50", 4096, 1000),
    make_case("gradient", 4096, 1000),
    make_case("sharp", 4096, 1000),
]
