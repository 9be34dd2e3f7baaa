"""Sinkhorn-Knopp over many sizes, types and options: every tile edge, one thread block and many, early stops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from deepclust_ext import reference, sinkhorn_knopp
from tests.helpers import DEVICES, EMULATED, assert_error_budget

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# In float64 the truth rounds exponents as we do, which shows where they are as large as these: a test of its own.
NARROW = [(0.001, dtype) for dtype in DTYPES[:3]]

# Around the borders of warps and tiles of columns (32), slices of rows (32), exponents at once (4, 128 columns); the
# last ones take more than one thread block (above 16384 elements), of 1, 3, 8 and 16 slices.
SMALL = [(1, 1), (2, 33), (31, 5), (33, 32), (64, 31), (65, 129), (97, 121)]
LARGE = [(33, 520), (129, 129), (290, 60), (530, 31)]


def scores_of(*shape: int, seed: int = 0) -> Tensor:
    """Return cosines (..., N, K) of random directions in float64."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (
        torch.nn.functional.normalize(torch.randn(*size, 6, generator=generator, dtype=torch.float64), dim=-1)
        for size in (shape[:-1], (*shape[:-2], shape[-1]))
    )
    return rows @ columns.mT


def shares_of(*shape: int, seed: int = 0) -> Tensor:
    """Return shares of many magnitudes, a third of them 0."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.exp(6 * torch.rand(*shape, generator=generator, dtype=torch.float64))
    drawn[..., 1::3] = 0
    return drawn


def run(function: Callable[..., Any], scores: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    """Return the assignments, the gradient of a weighted sum of them, and the iterations."""
    leaf = scores.detach().clone().requires_grad_()
    assignments, used = function(leaf, **options, differentiable=True, return_num_iters=True)
    weight = torch.linspace(-1, 2, scores.numel(), device=scores.device).view(scores.shape).to(scores.dtype)
    (gradient,) = torch.autograd.grad((assignments * weight).sum(), leaf)
    return {"assignments": assignments.detach(), "gradient": gradient, "used": used}


def assert_within_budget(scores: Tensor, dtype: torch.dtype, device: str, **options: Any) -> dict[str, Tensor]:
    rounded = scores.to(dtype).to(device)
    moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()}
    ours = run(sinkhorn_knopp, rounded, moved)
    naive = run(reference.sinkhorn_knopp, rounded, moved)
    truth = run(reference.sinkhorn_knopp, rounded.double(), moved)
    assert torch.equal(ours["used"], truth["used"])
    for name in ("assignments", "gradient"):
        assert_error_budget(ours[name], naive[name], truth[name], name)
    return ours


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("size", "dtype"),
    [(size, dtype) for size in SMALL for dtype in DTYPES]
    + [(size, torch.float32) for size in LARGE]
    + [(LARGE[1], dtype) for dtype in DTYPES[1:]],
    ids=str,
)
def test_sizes(size: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    assert_within_budget(scores_of(*size), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_iters", [1, 20])
@pytest.mark.parametrize(
    ("epsilon", "dtype"), [(epsilon, dtype) for epsilon in (1.0, 0.05, 0.01) for dtype in DTYPES] + NARROW, ids=str
)
def test_epsilons(epsilon: float, num_iters: int, dtype: torch.dtype, device: str) -> None:
    assert_within_budget(scores_of(41, 17), dtype, device, epsilon=epsilon, num_iters=num_iters)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("epsilon", "dtype"), [(0.01, torch.float64), *NARROW], ids=str)
def test_epsilons_of_many_blocks(epsilon: float, dtype: torch.dtype, device: str) -> None:
    assert_within_budget(scores_of(270, 70), dtype, device, epsilon=epsilon, num_iters=4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_iters", [1, 4])
@pytest.mark.parametrize("size", [(41, 17), (270, 70)], ids=str)
def test_narrow_epsilon_in_float64(size: tuple[int, int], num_iters: int, device: str) -> None:
    """The truth by a longer float; its gradient is not at hand, so gradients are compared with the reference's."""
    scores = scores_of(*size).to(device)
    logits = scores.cpu().numpy().astype(np.longdouble) / np.longdouble(0.001)
    log_u = np.zeros((size[0], 1), np.longdouble)
    for _ in range(num_iters):
        log_v = -np.log(size[1]) - log_sum_exp(logits + log_u, 0)
        log_u = -np.log(size[0]) - log_sum_exp(logits + log_v, 1)
    truth = np.exp(logits + log_u + log_v) * size[0]
    ours, naive = (
        run(f, scores, {"epsilon": 0.001, "num_iters": num_iters}) for f in (sinkhorn_knopp, reference.sinkhorn_knopp)
    )
    error, naive_error = (np.abs(run["assignments"].cpu().numpy() - truth).max() for run in (ours, naive))
    assert error <= 2 * naive_error + np.finfo(np.float64).eps
    torch.testing.assert_close(ours["gradient"], naive["gradient"], rtol=1e-9, atol=1e-9)


def log_sum_exp(
    x: npt.NDArray[np.longdouble],  # (N, K)
    axis: int,
) -> npt.NDArray[np.longdouble]:
    largest = x.max(axis=axis, keepdims=True)
    return np.asarray(largest + np.log(np.exp(x - largest).sum(axis=axis, keepdims=True)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("batch", "dtype"), [((2,), dtype) for dtype in DTYPES] + [((), torch.float32)], ids=str)
@pytest.mark.parametrize("size", [(7, 5), (40, 37), (530, 31)], ids=str)
def test_marginals(size: tuple[int, int], batch: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    shares = {"sample_marginals": shares_of(*batch, size[0]), "cluster_marginals": shares_of(*batch, size[1], seed=1)}
    ours = assert_within_budget(scores_of(2, *size), dtype, device, epsilon=0.1, **shares)
    assert not bool(ours["assignments"][:, 1::3].any())
    assert not bool(ours["assignments"][..., 1::3].any())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(20, 7), (280, 61)], ids=str)
def test_shares_next_to_nothing(size: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    """Of a column of which next to nothing is left, logarithms still tell the sum."""
    shares = {"sample_marginals": torch.ones(size[0]), "cluster_marginals": torch.ones(size[1])}
    shares["sample_marginals"][:-1] = 1e-25
    shares["cluster_marginals"][1:] = 1e-25
    assert_within_budget(scores_of(*size), dtype, device, epsilon=0.02, **shares)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("size", "dtype"), [((30, 10), torch.float32), ((30, 10), torch.float64), ((130, 130), torch.float32)], ids=str
)
def test_tolerance(size: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    """Problems of one batch stop at different iterations, one not at all, and keep what they had then."""
    scores = torch.cat([scores_of(1, *size, seed=seed) * scale for seed, scale in enumerate((0.3, 1, 3, 0))])
    ours = assert_within_budget(scores, dtype, device, epsilon=0.1, num_iters=6, tolerance=0.03)
    counts = ours["used"].tolist()
    assert counts[3] == 1
    assert counts[2] == 6
    assert len(set(counts)) >= 3
    for problem, count in enumerate(counts):
        alone = sinkhorn_knopp(scores[problem].to(dtype).to(device), epsilon=0.1, num_iters=count)
        assert torch.equal(ours["assignments"][problem], alone)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_batch_dimensions(dtype: torch.dtype, device: str) -> None:
    assert_within_budget(scores_of(2, 1, 3, 12, 5), dtype, device)
    assert_within_budget(scores_of(2, 1, 150, 120), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(20, 7), (280, 61)], ids=str)
def test_problems_that_are_nan(size: tuple[int, int], device: str) -> None:
    """A problem with bad scores or shares is NaN, in its gradient too, and the others are not."""
    scores = scores_of(5, *size).float().to(device)
    for problem, bad in enumerate((float("nan"), float("inf"), -float("inf"))):
        scores[problem, -1, -1] = bad
    # The rest of 1 / 0.07 beside its float32 is above 0, so that -inf alone would make no NaN.
    for options in ({"epsilon": 0.07}, {"epsilon": 0.07, "tolerance": 0.5, "num_iters": 2}):
        ours = run(sinkhorn_knopp, scores, options)
        for result in (ours["assignments"], ours["gradient"]):
            assert bool(result[:3].isnan().all())
            assert bool(result[3:].isfinite().all())
        assert ours["used"][:3].tolist() == [options.get("num_iters", 3)] * 3
    for name, count in (("sample_marginals", size[0]), ("cluster_marginals", size[1])):
        shares = torch.ones(5, count, device=device)
        shares[0, 1] = -1
        shares[1, 0] = float("nan")
        shares[2, -1] = float("inf")
        shares[3] = 0
        ours = run(sinkhorn_knopp, scores_of(5, *size).float().to(device), {name: shares, "num_iters": 1})
        for result in (ours["assignments"], ours["gradient"]):
            assert bool(result[:4].isnan().all())
            assert bool(result[4].isfinite().all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(20, 7), (280, 61)], ids=str)
def test_potentials(size: tuple[int, int], device: str) -> None:
    """What the op keeps for its gradient: the logarithms of the sums, of every iteration."""
    scores, shares = scores_of(*size).to(device), shares_of(size[0]).to(device)
    result = torch.ops.deepclust_ext.sinkhorn_knopp(
        scores, epsilon=0.1, num_iters=2, sample_marginals=shares, differentiable=True
    )
    logits, log_shares = scores / 0.1, (shares / shares.sum()).log()
    log_u = torch.where(shares > 0, 0.0, log_shares)
    for kept in result[2]:
        column_sums = (logits + log_u[:, None]).logsumexp(0)
        row_sums = (logits - column_sums - torch.tensor(float(size[1])).log()).logsumexp(1)
        log_u = log_shares - row_sums
        first, second = kept
        found = first / 0.1 + second if device == "cuda" or EMULATED else first + second
        torch.testing.assert_close(found, -torch.cat([row_sums, column_sums]), rtol=1e-6, atol=1e-6)
