"""Hand cases, independent loops, properties and edges of Sinkhorn-Knopp."""

import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext import reference, sinkhorn_knopp
from tests.helpers import EMULATED, peak_extra_megabytes

FUNCTIONS: tuple[Callable[..., Any], ...] = (sinkhorn_knopp, reference.sinkhorn_knopp)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).mul(0.4).clamp(-1, 1)


def shares_of(*shape: int, seed: int = 0) -> Tensor:
    """Return shares of which the second is 0."""
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05
    drawn[..., 1:2] = 0
    return drawn


def given_shares(samples: int, clusters: int, seed: int = 0) -> dict[str, Any]:
    return {"sample_marginals": shares_of(samples, seed=seed), "cluster_marginals": shares_of(clusters, seed=seed + 1)}


def loop_formula(
    scores: Tensor,  # (N, K)
    epsilon: float,
    num_iters: int,
    sample_marginals: Tensor | None = None,  # (N,)
    cluster_marginals: Tensor | None = None,  # (K,)
) -> list[list[list[float]]]:
    """The assignments after every iteration, by the definition, one element at a time, in plain Python."""
    samples, clusters = scores.shape
    kernel = [[math.exp(s / epsilon) for s in row] for row in scores.tolist()]
    given_r = [1.0] * samples if sample_marginals is None else sample_marginals.tolist()
    given_c = [1.0] * clusters if cluster_marginals is None else cluster_marginals.tolist()
    r, c = ([share / math.fsum(shares) for share in shares] for shares in (given_r, given_c))
    u = [1.0 if share > 0 else 0.0 for share in r]
    iterates = []
    for _ in range(num_iters):
        v = [c[k] / math.fsum(u[n] * kernel[n][k] for n in range(samples)) for k in range(clusters)]
        u = [r[n] / math.fsum(v[k] * kernel[n][k] for k in range(clusters)) for n in range(samples)]
        iterates.append([[samples * u[n] * kernel[n][k] * v[k] for k in range(clusters)] for n in range(samples)])
    return iterates


@given(
    seed=st.integers(0, 10_000),
    samples=st.integers(1, 9),
    clusters=st.integers(1, 7),
    epsilon=st.sampled_from([0.05, 0.3, 2.0]),
    num_iters=st.integers(1, 6),
    with_shares=st.booleans(),
)
def test_every_iterate_equals_the_loop(
    seed: int, samples: int, clusters: int, epsilon: float, num_iters: int, with_shares: bool
) -> None:
    scores = cosines(samples, clusters, seed=seed)
    shares = given_shares(samples, clusters, seed) if with_shares else {}
    iterates = loop_formula(scores, epsilon, num_iters, **shares)
    for count, expected in enumerate(iterates, start=1):
        for function in FUNCTIONS:
            ours = function(scores, epsilon=epsilon, num_iters=count, **shares)
            torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def swav_loop(scores: Tensor, epsilon: float, num_iters: int) -> Tensor:
    """The loop of SwAV: exponentials of all scores, then every cluster to 1/K and every sample to 1/N, in turns."""
    q = torch.exp(scores / epsilon).T  # (K, N)
    clusters, samples = q.shape
    q = q / q.sum()
    for _ in range(num_iters):
        q = q / q.sum(dim=1, keepdim=True) / clusters
        q = q / q.sum(dim=0, keepdim=True) / samples
    return (q * samples).T


def swav_tolerance(dtype: torch.dtype) -> float:
    """1e-6, or the rounding of the result."""
    return max(1e-6, torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("epsilon", [0.5, 0.05, 0.02, 0.015])
def test_equals_swav_step_by_step(epsilon: float, dtype: torch.dtype) -> None:
    scores = cosines(90, 12).to(dtype)
    for num_iters in (1, 2, 3, 10):
        expected = swav_loop(scores.double(), epsilon, num_iters)
        for function in FUNCTIONS[: 1 if dtype == torch.float32 else 2]:
            ours = function(scores, epsilon=epsilon, num_iters=num_iters)
            torch.testing.assert_close(ours.double(), expected, rtol=0, atol=swav_tolerance(dtype))


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.float16, 0.05), (torch.bfloat16, 0.01), (torch.float32, 0.01)])
def test_right_where_the_loop_of_swav_is_nan(dtype: torch.dtype, epsilon: float) -> None:
    scores = cosines(60, 9).to(dtype)
    assert bool(swav_loop(scores, epsilon, 3).isnan().any())
    expected = swav_loop(scores.double(), epsilon, 3)
    ours = sinkhorn_knopp(scores, epsilon=epsilon, num_iters=3)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=swav_tolerance(dtype))


def test_hand_case(backend: str) -> None:
    # exp(scores) = [[1, 2], [3, 2]]: the columns are equal, so the first iteration normalizes the rows.
    scores = torch.tensor([[1.0, 2.0], [3.0, 2.0]]).double().log().requires_grad_()
    first = torch.tensor([[1 / 3, 2 / 3], [3 / 5, 2 / 5]]).double()
    second = torch.tensor([[4 / 11, 7 / 11], [12 / 19, 7 / 19]]).double()  # v is now as 8 to 7
    torch.testing.assert_close(sinkhorn_knopp(scores, epsilon=1.0, num_iters=1), first)
    torch.testing.assert_close(sinkhorn_knopp(scores, epsilon=1.0, num_iters=2), second)
    torch.testing.assert_close(sinkhorn_knopp(0.05 * scores, num_iters=2), second)
    # After the first iteration the clusters have 7/15 and 8/15: an error of 1/15.
    for tolerance, expected in ((3.0, 1), (0.067, 1), (0.066, 2)):
        _, used = sinkhorn_knopp(scores, epsilon=1.0, num_iters=2, tolerance=tolerance, return_num_iters=True)
        assert used.shape == ()
        assert used.dtype == torch.int64
        assert used.item() == expected
    # Only the second sample counts, for all the mass, of which the second cluster gets three quarters.
    shares: dict[str, Any] = {
        "sample_marginals": torch.tensor([0.0, 2.0]),
        "cluster_marginals": torch.tensor([1.0, 3.0]),
    }
    expected_shares = torch.tensor([[0.0, 0.0], [0.5, 1.5]]).double()
    torch.testing.assert_close(sinkhorn_knopp(scores, epsilon=1.0, num_iters=1, **shares), expected_shares)


problems = given(seed=st.integers(0, 10_000), samples=st.integers(2, 40), clusters=st.integers(2, 12))


@problems
def test_converges_to_the_marginals(seed: int, samples: int, clusters: int) -> None:
    shares = given_shares(samples, clusters, seed)
    for options in ({}, shares):
        scores = cosines(samples, clusters, seed=seed)
        assignments, used = sinkhorn_knopp(
            scores, epsilon=0.5, num_iters=500, tolerance=1e-10, return_num_iters=True, **options
        )
        assert used.item() < 500
        r = options.get("sample_marginals", torch.ones(samples).double())
        c = options.get("cluster_marginals", torch.ones(clusters).double())
        torch.testing.assert_close(assignments.sum(1), samples * r / r.sum(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(assignments.sum(0), samples * c / c.sum(), rtol=0, atol=1e-9 * samples)
        assert int(assignments[r == 0].count_nonzero()) == 0
        assert int(assignments[:, c == 0].count_nonzero()) == 0


@problems
def test_permutation_equivariance(seed: int, samples: int, clusters: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randperm(count, generator=generator) for count in (samples, clusters))
    scores, r, c = cosines(samples, clusters, seed=seed), shares_of(samples), shares_of(clusters)
    plain = sinkhorn_knopp(scores, sample_marginals=r, cluster_marginals=c)
    permuted = sinkhorn_knopp(scores[rows][:, columns], sample_marginals=r[rows], cluster_marginals=c[columns])
    torch.testing.assert_close(permuted, plain[rows][:, columns], rtol=1e-9, atol=1e-12)


@problems
def test_shifts_of_everything_and_of_columns_change_nothing(seed: int, samples: int, clusters: int) -> None:
    scores = (cosines(samples, clusters, seed=seed) * 256).round() / 256  # so that the sums below are exact
    plain = sinkhorn_knopp(scores)
    for shift in (torch.tensor(1024.0), torch.tensor(-3.0), (normal(clusters, seed=seed) * 256).round() / 256):
        torch.testing.assert_close(sinkhorn_knopp(scores + shift), plain, rtol=1e-8, atol=1e-10)


@problems
def test_shifts_of_rows_change_nothing_at_convergence(seed: int, samples: int, clusters: int) -> None:
    scores, shift = cosines(samples, clusters, seed=seed), cosines(samples, 1, seed=seed + 1)
    plain, shifted = (sinkhorn_knopp(x, epsilon=1.0, num_iters=60) for x in (scores, scores + shift))
    torch.testing.assert_close(shifted, plain, rtol=1e-7, atol=1e-9)


def test_shifts_of_rows_change_the_iterates(backend: str) -> None:
    """Why subtracting each row's maximum is no way to stabilize the iteration."""
    scores = torch.tensor([[1.0, 0.0], [0.9, 0.0], [0.5, 0.0]]).double()
    difference = sinkhorn_knopp(scores) - sinkhorn_knopp(scores - scores.amax(1, keepdim=True))
    assert float(difference.abs().max()) > 0.3


@pytest.mark.parametrize("spread", [1, 30])
def test_samples_and_clusters_of_no_share_drop_out(spread: float, backend: str) -> None:
    scores = spread * cosines(12, 7)
    r, c = shares_of(12), shares_of(7)
    kept_rows, kept_columns = r > 0, c > 0
    whole = sinkhorn_knopp(scores, sample_marginals=r, cluster_marginals=c)
    scores[~kept_rows] = 100.0
    scores[:, ~kept_columns] = 100.0
    changed = sinkhorn_knopp(scores, sample_marginals=r, cluster_marginals=c)
    torch.testing.assert_close(changed, whole, rtol=1e-12, atol=0)
    part = sinkhorn_knopp(
        scores[kept_rows][:, kept_columns], sample_marginals=r[kept_rows], cluster_marginals=c[kept_columns]
    )
    torch.testing.assert_close(whole[kept_rows][:, kept_columns] / 12, part / len(part), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("num_iters", [1, 3])
@pytest.mark.parametrize(
    ("rows", "shares"),
    [([[0.0, -89.0], [-44.0, -92.0]], [1.0, 1e-31]), ([[0.0, -89.0], [-100.0, -41.0]], [1e-22, 1.0])],
)
def test_what_float32_cannot_hold_may_count_most(
    rows: list[list[float]], shares: list[float], num_iters: int, backend: str
) -> None:
    """Beside shares as small as these, exp(-89), which is 0 among elements as large as 1, is the largest term."""
    c = torch.tensor(shares)
    assignments = sinkhorn_knopp(torch.tensor(rows), epsilon=1.0, num_iters=num_iters, cluster_marginals=c)
    expected = torch.tensor(loop_formula(torch.tensor(rows), 1.0, num_iters, cluster_marginals=c)[-1])
    torch.testing.assert_close(assignments, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(600, 5), (150, 70)])
@pytest.mark.parametrize("shift", [60.0, -60.0])
def test_rows_far_apart(shift: float, shape: tuple[int, int]) -> None:
    scores = cosines(*shape)
    scores[-50:] += shift
    torch.testing.assert_close(sinkhorn_knopp(scores), reference.sinkhorn_knopp(scores), rtol=1e-8, atol=1e-10)


def test_shares_of_any_scale_dtype_and_layout(backend: str) -> None:
    scores = cosines(3, 8, 5).float()
    r = torch.arange(24.0).view(3, 8)
    plain = sinkhorn_knopp(scores, sample_marginals=r)
    for same in (4 * r, r.double(), r.half(), r.mT.contiguous().mT):
        assert torch.equal(sinkhorn_knopp(scores, sample_marginals=same), plain)
    shared = r[1].expand(3, 8)
    assert torch.equal(sinkhorn_knopp(scores, sample_marginals=shared), sinkhorn_knopp(scores, sample_marginals=r[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tolerance", [0.0, 1e-3, 0.05])
def test_tolerance_stops_at_the_first_iteration_within_it(tolerance: float, dtype: torch.dtype, backend: str) -> None:
    scores = torch.stack([cosines(30, 6, seed=seed) * scale for seed, scale in enumerate((0.0, 0.3, 1.0, 3.0))])
    scores = scores.to(dtype)
    result, used = sinkhorn_knopp(scores, epsilon=0.2, num_iters=25, tolerance=tolerance, return_num_iters=True)
    if tolerance > 0:
        assert len(set(used.tolist())) >= 3
    for problem, count in enumerate(used.tolist()):
        iterates = [sinkhorn_knopp(scores[problem], epsilon=0.2, num_iters=i) for i in range(1, count + 1)]
        errors = [float((p.double().sum(0) / 30 - 1 / 6).abs().sum()) for p in iterates]
        assert torch.equal(result[problem], iterates[-1])
        rounding = 10 * torch.finfo(dtype).eps
        assert errors[-1] <= tolerance + rounding or count == 25
        assert all(error > tolerance - rounding for error in errors[:-1])
    _, used = sinkhorn_knopp(scores, num_iters=7, return_num_iters=True)
    assert used.tolist() == [7] * 4


@pytest.mark.parametrize("differentiable", [True, False])
def test_problems_of_a_batch_are_independent(differentiable: bool, backend: str) -> None:
    scores, r = cosines(2, 3, 17, 6).float(), shares_of(2, 3, 17).float()
    leaf = scores.clone().requires_grad_(differentiable)
    together = sinkhorn_knopp(leaf, sample_marginals=r, differentiable=differentiable)
    for index in itertools.product(range(2), range(3)):
        alone = sinkhorn_knopp(leaf[index], sample_marginals=r[index], differentiable=differentiable)
        assert torch.equal(together[index], alone)
        if differentiable:
            gradients = [
                torch.autograd.grad(x.square().sum(), leaf, retain_graph=True)[0] for x in (together[index], alone)
            ]
            assert torch.equal(*gradients)
            assert int(gradients[0].count_nonzero()) == int(gradients[0][index].count_nonzero()) > 0


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (0, 3, 4), (2, 0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_dimensions(shape: tuple[int, ...], backend: str) -> None:
    leaf = torch.zeros(shape, requires_grad=True)
    shares = {"sample_marginals": torch.ones(shape[:-1]), "cluster_marginals": torch.ones(shape[-1])}
    variants: list[dict[str, Any]] = [{}, shares, {"tolerance": 0.1}]
    for options in variants:
        result, used = sinkhorn_knopp(leaf, num_iters=2, differentiable=True, return_num_iters=True, **options)
        assert result.shape == shape
        assert used.shape == shape[:-2]
        assert used.tolist() == torch.full(shape[:-2], 2).tolist()
        (gradient,) = torch.autograd.grad(result.sum(), leaf)
        assert gradient.shape == shape


@pytest.mark.parametrize("num_iters", [1, 3, 10])
@pytest.mark.parametrize("with_shares", [False, True])
def test_gradient_is_that_of_the_iterations(num_iters: int, with_shares: bool) -> None:
    leaf = cosines(7, 5).requires_grad_()
    options: dict[str, Any] = {"epsilon": 0.3, "num_iters": num_iters, "differentiable": True}
    options |= given_shares(7, 5) if with_shares else {}
    weights = normal(7, 5, seed=1)
    ours, theirs = (torch.autograd.grad((f(leaf, **options) * weights).sum(), leaf)[0] for f in FUNCTIONS)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: sinkhorn_knopp(x, **options), leaf)


def test_gradient_only_to_the_scores_and_only_on_demand(backend: str) -> None:
    scores, shares = cosines(6, 3).requires_grad_(), torch.ones(6, requires_grad=True)
    assert not sinkhorn_knopp(scores, sample_marginals=shares).requires_grad
    assert not sinkhorn_knopp(scores.detach(), sample_marginals=shares, differentiable=True).requires_grad
    result, used = sinkhorn_knopp(scores, sample_marginals=shares, differentiable=True, return_num_iters=True)
    result.square().sum().backward()
    assert not used.requires_grad
    assert shares.grad is None
    assert scores.grad is not None
    assert int(scores.grad.count_nonzero()) > 0


@pytest.mark.parametrize("shape", [(600, 200), (4, 300, 130), (90, 64, 16)], ids=str)
@pytest.mark.skipif(EMULATED, reason="one thread runs the emulated device")
def test_same_bits_on_any_number_of_threads(shape: tuple[int, ...]) -> None:
    """Large enough that threads share a problem, or the problems."""
    threads = torch.get_num_threads()
    leaf = cosines(*shape).float().requires_grad_()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assignments = sinkhorn_knopp(leaf, differentiable=True)
            results.append([assignments, *torch.autograd.grad(assignments.square().sum(), leaf)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["scores", "sample_marginals", "cluster_marginals"])
def test_non_finite_input_gives_nan(name: str, value: float, backend: str) -> None:
    tensors: dict[str, Any] = {"scores": cosines(9, 4).float()}
    tensors |= {"sample_marginals": torch.ones(9), "cluster_marginals": torch.ones(4)}
    tensors[name].view(-1)[2] = value
    assert bool(sinkhorn_knopp(**tensors, epsilon=0.07).isnan().all())


SCORES = torch.ones(2, 4, 3)
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"scores": [[1.0]]}, TypeError, "scores: expected a tensor, got list"),
    ({"scores": torch.ones(3)}, ValueError, r"scores: expected shape \(..., N, K\), got \(3,\)"),
    ({"scores": SCORES.int()}, TypeError, "scores: expected dtype float16, .* or float64, got torch.int32"),
    ({"epsilon": 0}, ValueError, "epsilon: expected a finite number above 0, got 0"),
    ({"epsilon": "small"}, TypeError, "epsilon: expected a number, got 'small'"),
    ({"num_iters": 0}, ValueError, "num_iters: expected at least 1, got 0"),
    ({"num_iters": 2.0}, TypeError, "num_iters: expected an integer, got 2.0"),
    ({"tolerance": -0.1}, ValueError, "tolerance: expected a finite number of at least 0, got -0.1"),
]
for side, size, other in (("sample_marginals", 4, 3), ("cluster_marginals", 3, 4)):
    shape = rf"\({size},\) or \(2, {size}\)"
    BAD_CALLS += [
        ({side: [1.0]}, TypeError, f"{side}: expected a tensor, got list"),
        ({side: torch.ones(other)}, ValueError, rf"{side}: expected shape {shape}, got \({other},\)"),
        ({side: torch.ones(1, size)}, ValueError, rf"{side}: expected shape {shape}, got \(1, {size}\)"),
        ({side: torch.ones(size).int()}, TypeError, f"{side}: expected a floating dtype, got torch.int32"),
        ({side: torch.ones(size, device="meta")}, ValueError, f"{side}: expected device cpu like scores, got meta"),
    ]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        sinkhorn_knopp(**({"scores": SCORES} | arguments))


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named_by_the_op_too(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    if error is TypeError and message.endswith(("got list", "'small'", "2.0", "got bool")):
        pytest.skip("refused or converted by the schema")
    name = message.split(":")[0]
    with pytest.raises(error, match=f"^{name}: expected "):
        torch.ops.deepclust_ext.sinkhorn_knopp(**({"scores": SCORES} | arguments))


@pytest.mark.skipif(EMULATED, reason="the emulated device takes minutes for so many elements")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer multiplies memory")
def test_memory_of_the_gradient_does_not_grow_with_iterations_times_elements() -> None:
    """The gradient of 100 iterations over a matrix of 2 MB takes at most 20 MB; matrices of all would take 200 MB."""
    extra = peak_extra_megabytes(
        "scores = torch.randn(1024, 512).requires_grad_()\n"
        "def gradient(x, **options):\n"
        "    deepclust_ext.sinkhorn_knopp(x, differentiable=True, **options).square().sum().backward()",
        "gradient(scores[:300, :100])",
        "gradient(scores, num_iters=100)",
    )
    assert extra <= 20
