"""Hand cases, walks, gradients, edges and messages of diffused_neighbor_gather; its numbers are in test_philox.py."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import diffused_neighbor_gather, reference
from deepclust_ext.ops._checks import SUPPORTED_DTYPES
from tests.helpers import assert_error_budget, same_bits

BANK = [[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]]  # cosines with (1, 0): 1, 0.6, 0, -1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at_degrees(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_without_noise_it_is_the_gathered_row(dtype: torch.dtype) -> None:
    bank = torch.randn(9, 7, generator=seeded()).to(dtype)
    samples, indices = diffused_neighbor_gather(
        torch.randn(5, 7, generator=seeded(1)).to(dtype), bank, num_neighbors=6, num_samples=8, noise_std=0.0
    )
    assert samples.shape == (5, 8, 7)
    assert indices.shape == (5, 8)
    assert len(indices.unique()) > 4
    assert torch.equal(samples, bank[indices])


@pytest.mark.usefixtures("backend")
def test_one_neighbor_is_the_nearest_that_counts() -> None:
    query, bank = torch.tensor([[2.0, 0.0]] * 3), torch.tensor(BANK)
    exclude, valid = torch.tensor([-1, 0, 2]), torch.tensor([True, False, True, True])
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [0, 0, 0]),
        ({"exclude": exclude}, [0, 1, 0]),
        ({"valid": valid}, [0, 0, 0]),
        ({"exclude": exclude, "valid": valid}, [0, 2, 0]),
    ]
    for options, expected in cases:
        _, indices = diffused_neighbor_gather(query, bank, num_neighbors=1, **options)
        assert indices.squeeze(1).tolist() == expected


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-9])
def test_next_to_no_temperature_draws_the_nearest(temperature: float) -> None:
    query, bank = at_degrees(0, 90), at_degrees(-20, 10, 60, 80)
    samples, indices = diffused_neighbor_gather(query, bank, temperature=temperature, num_samples=50)
    assert (indices == torch.tensor([[1], [3]])).all()
    assert samples.isfinite().all()


@pytest.mark.usefixtures("backend")
def test_walk_follows_the_neighbors_of_the_bank() -> None:
    """Each row is nearest to the next one, so that one neighbor leaves no choice."""
    bank = at_degrees(0, 40, 60, 70, 75)
    for num_steps, expected in ((1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 3), (7, 4)):
        samples, indices = diffused_neighbor_gather(
            at_degrees(-5), bank, num_neighbors=1, num_steps=num_steps, noise_std=0.0
        )
        assert indices.tolist() == [[expected]]
        assert torch.equal(samples[0], bank[[expected]])


@pytest.mark.usefixtures("backend")
def test_walk_never_draws_the_excluded_row() -> None:
    """From the last row, left out, the walk goes back along the chain where it would turn without `exclude`."""
    bank = at_degrees(0, 40, 60, 70, 75)
    exclude = torch.tensor([4])
    for num_steps, expected in ((1, 3), (2, 2), (3, 3)):
        _, indices = diffused_neighbor_gather(bank[4:], bank, num_neighbors=1, num_steps=num_steps, exclude=exclude)
        assert indices.tolist() == [[expected]]
    _, indices = diffused_neighbor_gather(
        bank[4:], bank, num_neighbors=3, num_steps=4, exclude=exclude, num_samples=500, temperature=10.0
    )
    assert indices.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.usefixtures("backend")
def test_walk_counts_as_many_neighbors_as_asked() -> None:
    """The excluded row is no neighbor of a row of the bank, so the one beyond the last must not count either."""
    bank = at_degrees(0, 1, 2, 60, 170)
    for exclude in (torch.tensor([4]), None):
        _, indices = diffused_neighbor_gather(
            at_degrees(0), bank, num_neighbors=2, num_steps=2, num_samples=300, temperature=10.0, exclude=exclude
        )
        assert indices.unique().tolist() == [0, 1, 2]


@pytest.mark.usefixtures("backend")
def test_a_walker_without_candidates_stays() -> None:
    query, bank = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor(BANK)
    valid = torch.tensor([False, True, False, False])
    for num_steps in (1, 3):
        for exclude, expected in ((None, [[1], [1]]), (torch.tensor([1, -1]), [[-1], [1]])):
            samples, indices = diffused_neighbor_gather(
                query, bank, num_steps=num_steps, valid=valid, exclude=exclude, noise_std=0.0
            )
            assert indices.tolist() == expected
            stood = torch.cat([query, bank])[[0 if expected[0][0] < 0 else 3, 3]]
            assert torch.equal(samples.squeeze(1), stood)
        samples, indices = diffused_neighbor_gather(query, bank[:0], num_steps=num_steps, noise_std=0.0)
        assert indices.tolist() == [[-1], [-1]]
        assert torch.equal(samples.squeeze(1), query)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("normalize", [False, True])
def test_what_is_not_finite_gives_nan(num_steps: int, normalize: bool) -> None:
    options: dict[str, Any] = {"num_steps": num_steps, "normalize": normalize, "num_samples": 2}
    query, bank = torch.randn(4, 5, generator=seeded()), torch.randn(8, 5, generator=seeded(1))
    query[1, 2] = math.nan
    query[2, 0] = math.inf
    samples, indices = diffused_neighbor_gather(query, bank, **options)
    assert samples.isnan().all(dim=(1, 2)).tolist() == [False, True, True, False]
    assert samples[[0, 3]].isfinite().all()
    assert (indices[[1, 2]] == -1).all()
    bank[3, 1] = math.nan
    samples, indices = diffused_neighbor_gather(query, bank, **options)
    assert samples.isnan().all()
    assert (indices == -1).all()
    samples, _ = diffused_neighbor_gather(query, bank, **options, valid=torch.arange(8) != 3)
    assert samples[[0, 3]].isfinite().all()
    samples, _ = diffused_neighbor_gather(query, bank, num_neighbors=0, normalize=normalize)
    assert samples.isfinite().all(dim=2).squeeze(1).tolist() == [True, False, False, True]


@pytest.mark.usefixtures("backend")
def test_normalized_samples_have_length_one_or_nothing() -> None:
    query = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0]])
    samples, _ = diffused_neighbor_gather(query, query, num_neighbors=0, normalize=True, noise_std=0.0)
    torch.testing.assert_close(samples.squeeze(1), torch.tensor([[0.6, 0.8], [0.0, 0.0], [1e-3, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_normalization_of_any_size(dtype: torch.dtype) -> None:
    """Where squares overflow or vanish."""
    size = 1e200 if dtype == torch.float64 else 1e30
    query = torch.tensor([[size, size], [-size, 0.0], [0.0, 1 / size]], dtype=dtype, requires_grad=True)
    samples, _ = diffused_neighbor_gather(query, query, num_neighbors=0, normalize=True, noise_std=0.0)
    half, tiny = math.sqrt(0.5), 1e12 / size
    expected = torch.tensor([[half, half], [-1.0, 0.0], [0.0, tiny]], dtype=dtype)
    torch.testing.assert_close(samples.squeeze(1), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
    (gradient,) = torch.autograd.grad(samples[:, 0, 1].sum(), query)
    expected = torch.tensor([[-half / size / 2, half / size / 2], [0.0, 1 / size], [0.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(gradient, expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.usefixtures("backend")
def test_without_neighbors_the_bank_is_not_read() -> None:
    query = torch.randn(6, 5, generator=seeded(), requires_grad=True)
    nothing: Any = None
    calls = [
        diffused_neighbor_gather(query, bank, num_neighbors=0, noise_std=0.5, num_samples=2, generator=seeded())
        for bank in (query, torch.full((3, 2), math.nan, dtype=torch.float16, requires_grad=True), nothing)
    ]
    for samples, indices in calls:
        assert torch.equal(samples, calls[0][0])
        assert (indices == -1).all()
        (gradient,) = torch.autograd.grad(samples.sum(), query)
        assert torch.equal(gradient, torch.full_like(query, 2))
    bank = torch.ones(3, 5, requires_grad=True)
    samples, _ = diffused_neighbor_gather(query.detach(), bank, num_neighbors=0)
    assert not samples.requires_grad


@pytest.mark.usefixtures("backend")
def test_gradient_goes_to_what_was_drawn() -> None:
    query = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.1]], requires_grad=True)
    bank = torch.tensor(BANK, requires_grad=True)
    samples, indices = diffused_neighbor_gather(
        query, bank, num_neighbors=1, exclude=torch.tensor([-1, 0, -1]), valid=torch.tensor([True, False, False, False])
    )
    assert indices.tolist() == [[0], [-1], [0]]
    samples.backward(torch.tensor([[[1.0, 2.0]], [[4.0, 8.0]], [[16.0, 32.0]]]))
    assert bank.grad is not None
    assert query.grad is not None
    assert bank.grad.tolist() == [[17.0, 34.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert query.grad.tolist() == [[0.0, 0.0], [4.0, 8.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_gradient_of_a_row_that_all_draw(dtype: torch.dtype, normalize: bool) -> None:
    """A thousand contributions in float32 at least, in a fixed order."""
    query = torch.ones(500, 33, dtype=dtype)
    bank = torch.randn(4, 33, generator=seeded()).to(dtype)
    bank[2] = 1 + bank[2].abs() / 8
    weight = torch.rand(500, 2, 33, generator=seeded(1)).to(dtype)
    options: dict[str, Any] = {"num_neighbors": 1, "num_samples": 2, "normalize": normalize}
    grads = []
    for function, kind in (
        (diffused_neighbor_gather, dtype),
        (diffused_neighbor_gather, dtype),
        (reference.diffused_neighbor_gather, dtype),
        (reference.diffused_neighbor_gather, torch.float64),
    ):
        leaf = bank.to(kind).requires_grad_()
        samples, indices = function(query.to(kind), leaf, **options, generator=seeded())
        assert (indices == 2).all()
        grads.append(torch.autograd.grad((samples * weight.to(kind)).sum(), leaf)[0])
    assert same_bits(grads[0], grads[1])
    assert_error_budget(grads[0], grads[2], grads[3], "gradient")


def test_bank_may_change_between_forward_and_backward() -> None:
    """A queue does, and the gradient needs none of its values."""
    bank = torch.tensor(BANK)
    query = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    samples, _ = diffused_neighbor_gather(query, bank, num_neighbors=1, valid=torch.zeros(4).bool(), normalize=True)
    bank.zero_()
    samples.sum().backward()
    leaf = torch.tensor(BANK).requires_grad_()
    queue = leaf * 1
    samples, _ = diffused_neighbor_gather(query.detach(), queue, num_neighbors=1, noise_std=0.0)
    with torch.no_grad():
        queue.zero_()
    samples.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": [[1.0]]}, TypeError, "query: expected a tensor, got list"),
        ({"query": torch.ones(3)}, ValueError, r"query: expected shape \(B, D\) with D > 0, got \(3,\)"),
        ({"query": torch.ones(3, 2).long()}, TypeError, "query: expected dtype float16, .* got torch.int64"),
        ({"bank": torch.ones(4, 3)}, ValueError, r"bank: expected shape \(any number, 2\), got \(4, 3\)"),
        ({"bank": torch.ones(4, 2).double()}, TypeError, "bank: expected dtype torch.float32 like query"),
        ({"num_neighbors": 2.0}, TypeError, "num_neighbors: expected an integer, got 2.0"),
        ({"num_neighbors": True}, TypeError, "num_neighbors: expected an integer, got True"),
        ({"num_neighbors": -1}, ValueError, "num_neighbors: expected 0 to 256, got -1"),
        ({"num_neighbors": 257}, ValueError, "num_neighbors: expected 0 to 256, got 257"),
        (
            {"num_neighbors": 256, "num_steps": 2, "exclude": torch.zeros(3).long()},
            ValueError,
            "num_neighbors: expected 0 to 255 with exclude and several steps, got 256",
        ),
        ({"temperature": 0.0}, ValueError, "temperature: expected a finite number above 0, got 0.0"),
        ({"temperature": "1"}, TypeError, "temperature: expected a number, got '1'"),
        ({"noise_std": -1.0}, ValueError, "noise_std: expected a finite number of at least 0, got -1.0"),
        ({"noise_std": math.inf}, ValueError, "noise_std: expected a finite number of at least 0, got inf"),
        ({"num_steps": 0}, ValueError, "num_steps: expected 1 to 2147483647, got 0"),
        ({"num_samples": 0}, ValueError, "num_samples: expected 1 to 2147483647, got 0"),
        ({"num_samples": 2**31}, ValueError, "num_samples: expected 1 to 2147483647, got 2147483648"),
        ({"exclude": torch.zeros(2).long()}, ValueError, r"exclude: expected shape \(3,\)"),
        ({"exclude": torch.zeros(3)}, TypeError, "exclude: expected dtype torch.int64, got torch.float32"),
        ({"valid": torch.ones(3).bool()}, ValueError, r"valid: expected shape \(4,\)"),
        ({"generator": 3}, TypeError, "generator: expected a torch.Generator on the CPU, got int"),
    ],
    ids=str,
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"query": torch.ones(3, 2), "bank": torch.ones(4, 2)} | change
    with pytest.raises(error, match=message):
        diffused_neighbor_gather(arguments.pop("query"), arguments.pop("bank"), **arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": torch.zeros(1).long()}, ValueError, r"seed: expected shape \[\] on the CPU, got \[1\]"),
        ({"seed": torch.zeros(())}, TypeError, "seed: expected dtype int64, got Float"),
        ({"num_neighbors": 300}, ValueError, "num_neighbors: expected 0 to 256, got 300"),
        ({"num_steps": 0}, ValueError, "num_steps: expected 1 to 2147483647, got 0"),
        ({"temperature": -1.0}, ValueError, "temperature: expected a finite number above 0"),
        ({"noise_std": math.nan}, ValueError, "noise_std: expected a finite number of at least 0"),
        ({"bank": torch.ones(4, 5)}, ValueError, r"bank: expected shape"),
    ],
    ids=str,
)
def test_the_op_checks_for_itself(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"query": torch.ones(3, 2), "bank": torch.ones(4, 2), "seed": torch.tensor(0)} | change
    with pytest.raises(error, match=message):
        torch.ops.deepclust_ext.diffused_neighbor_gather(**arguments)
