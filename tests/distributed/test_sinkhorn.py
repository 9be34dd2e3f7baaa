"""Sinkhorn-Knopp over ranks against one process with all samples."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import reference, sinkhorn_knopp
from deepclust_ext.distributed import sinkhorn_knopp as over_ranks
from deepclust_ext.losses import SinkhornKnopp
from tests.distributed.pool import PerRank, Pool
from tests.helpers import assert_error_budget

SHARDS = [(1, [7]), (2, [9, 9]), (3, [4, 0, 7]), ("odd", [1, 12]), (4, [1, 3, 70, 2])]
shards = pytest.mark.parametrize(("ranks", "sizes"), SHARDS, ids=str)


def assigned(
    group: Any, scores: Tensor, samples: Tensor | None, weight: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return assignments, iterations and, for a weight of the assignments, the gradient of the scores."""
    scores = scores.clone().requires_grad_(weight is not None)
    more = {} if group is None else {"process_group": group}
    call: Any = sinkhorn_knopp if group is None else over_ranks
    assignments, used = call(
        scores,
        sample_marginals=samples,
        differentiable=weight is not None,
        return_num_iters=True,
        **options,
        **more,
    )
    if weight is not None:
        (assignments * weight).sum().backward()
    return assignments.detach(), used, scores.grad


def run(
    pool: Pool,
    ranks: int | str,
    sizes: list[int],
    scores: Tensor,
    samples: Tensor | None = None,
    weight: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor | None]:
    def split(x: Tensor | None, dim: int) -> Any:
        return x if x is None else PerRank(x.split(sizes, dim=dim))

    answers = pool.run(assigned, split(scores, -2), split(samples, -1), split(weight, -2), options, ranks=ranks)
    assignments, used, gradients = zip(*answers, strict=True)
    assert all(torch.equal(each, used[0]) for each in used)
    return torch.cat(assignments, dim=-2), used[0], None if weight is None else torch.cat(gradients, dim=-2)


@shards
@pytest.mark.parametrize("case", ["plain", "batched", "shares", "tolerance"])
def test_assignments_and_gradients_are_those_of_one_process(
    pool: Pool, ranks: int | str, sizes: list[int], case: str
) -> None:
    count = sum(sizes)
    shape = (2, count, 5) if case == "batched" else (count, 5)
    scores, weight = torch.randn(2, *shape, dtype=torch.float64)
    samples, options = None, dict[str, Any](epsilon=0.3)
    if case == "shares":
        samples = torch.rand(count, dtype=torch.float64)
        samples[0] = 0
        options["cluster_marginals"] = torch.tensor([0.5, 0, 1, 2, 1], dtype=torch.float64)
    if case == "tolerance":
        options |= {"tolerance": 1e-3, "num_iters": 60}
    expected = assigned(None, scores, samples, weight, options)
    got = run(pool, ranks, sizes, scores, samples, weight, **options)
    assert torch.equal(got[1], expected[1])
    for place in (0, 2):
        torch.testing.assert_close(got[place], expected[place], rtol=1e-9, atol=1e-11)


@shards
@pytest.mark.parametrize("unit", [1e-300, 1e300])
def test_shares_of_float64_of_any_size(pool: Pool, ranks: int | str, sizes: list[int], unit: float) -> None:
    scores, samples = torch.randn(sum(sizes), 5), torch.rand(sum(sizes), dtype=torch.float64)
    expected, _, _ = run(pool, ranks, sizes, scores, samples)
    clusters = torch.full((5,), unit, dtype=torch.float64)
    got, _, _ = run(pool, ranks, sizes, scores, samples * unit, cluster_marginals=clusters)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_budget(pool: Pool, dtype: torch.dtype) -> None:
    scores = torch.randn(40, 6).to(dtype)
    truth, naive = reference.sinkhorn_knopp(scores.double(), epsilon=0.1), reference.sinkhorn_knopp(scores, epsilon=0.1)
    assert isinstance(truth, Tensor)
    assert isinstance(naive, Tensor)
    got, _, _ = run(pool, 3, [11, 0, 29], scores, epsilon=0.1)
    assert_error_budget(got, naive, truth)


@pytest.mark.parametrize("case", ["masks", "one sample masked", "one cluster masked", "far", "sharp"])
def test_what_is_finite_in_one_process_is_finite(pool: Pool, case: str) -> None:
    scores = torch.randn(12, 4)
    if case == "masks":
        scores[::3, 1] = -1e9
    elif case == "one sample masked":
        scores[7] = torch.finfo(torch.float32).min
    elif case == "one cluster masked":
        scores[:, 2] = -1e9
    elif case == "far":
        scores += 1e6
    elif case == "sharp":
        scores *= 1000
    got, _, _ = run(pool, 2, [7, 5], scores, epsilon=0.05, num_iters=5)
    truth = sinkhorn_knopp(scores.double(), epsilon=0.05, num_iters=5)
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_reaches_all_ranks_of_its_problem(pool: Pool, wrong: float) -> None:
    scores = torch.randn(2, 6, 3)
    scores[1, 5, 0] = wrong
    got, _, _ = run(pool, 2, [3, 3], scores)
    assert got[0].isfinite().all()
    assert got[1].isnan().all()


def modules(group: Any, scores: Tensor) -> tuple[Tensor, Tensor]:
    module = SinkhornKnopp(num_iters=4, gather_distributed=True, process_group=group)
    return module(scores), over_ranks(scores, num_iters=4, process_group=group)


def test_module(pool: Pool) -> None:
    for got, want in pool.run(modules, PerRank(torch.randn(10, 3).split([6, 4])), ranks=2):
        assert torch.equal(got, want)


def test_no_sample_at_all(pool: Pool) -> None:
    got, used, _ = run(pool, 2, [0, 0], torch.randn(0, 3))
    assert got.shape == (0, 3)
    assert int(used) == 3
