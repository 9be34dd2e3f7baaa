"""Hand cases, ties, candidates, edges and messages of nearest_neighbors."""

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext import diffused_neighbor_gather, nearest_neighbors, reference
from deepclust_ext.ops._checks import SUPPORTED_DTYPES
from tests.helpers import EMULATED, peak_extra_megabytes, results_by_instruction_set, same_bits

BANK = [[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]]  # cosines with (1, 0): 1, 0.6, 0, -1


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def signs(rows: int, dims: int, generator: torch.Generator) -> Tensor:
    """Return rows of 1 and -1 in float64: with dims a power of 4, every cosine is exact in any dtype, and many tie."""
    return torch.randint(2, (rows, dims), generator=generator).double() * 2 - 1


@pytest.mark.usefixtures("backend")
def test_hand_case() -> None:
    cosines, indices = nearest_neighbors(torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.tensor(BANK), k=3)
    assert indices.tolist() == [[0, 1, 2], [0, 3, 1]]
    assert cosines.tolist() == [pytest.approx([1, 0.6, 0]), pytest.approx([0, 0, -0.8])]
    assert indices.dtype == torch.int64


@pytest.mark.usefixtures("backend")
def test_excluded_and_invalid_rows_are_no_candidates() -> None:
    query, bank = torch.tensor([[1.0, 0.0]] * 3), torch.tensor(BANK)
    bank[1] = math.nan
    valid = torch.tensor([True, False, True, True])
    cosines, indices = nearest_neighbors(query, bank, k=2, exclude=torch.tensor([-1, 0, 1]), valid=valid)
    assert indices.tolist() == [[0, 2], [2, 3], [0, 2]]
    assert cosines.tolist() == [[1, 0], [0, -1], [1, 0]]


@pytest.mark.usefixtures("backend")
def test_fewer_candidates_than_k() -> None:
    query, bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor(BANK)
    cosines, indices = nearest_neighbors(
        query, bank, k=6, exclude=torch.tensor([0, -1]), valid=torch.tensor([True, True, False, False])
    )
    assert indices.tolist() == [[1] + [-1] * 5, [1, 0] + [-1] * 4]
    assert cosines.tolist() == [pytest.approx([0.6] + [-math.inf] * 5), pytest.approx([0.8, 0] + [-math.inf] * 4)]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_no_candidate_at_all(rows: int) -> None:
    for count, valid in ((0, None), (0, torch.ones(0).bool()), (40, torch.zeros(40).bool())):
        cosines, indices = nearest_neighbors(torch.ones(rows, 3), torch.ones(count, 3), k=2, valid=valid)
        assert cosines.tolist() == [[-math.inf] * 2] * rows
        assert indices.tolist() == [[-1] * 2] * rows
        assert cosines.shape == indices.shape == (rows, 2)


@given(
    st.integers(1, 40),
    st.integers(0, 150),
    st.sampled_from([1, 4, 16, 64]),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.sampled_from(SUPPORTED_DTYPES),
    st.integers(0, 10**6),
)
def test_exact_with_many_ties(
    rows: int, count: int, dims: int, k: int, excludes: bool, masks: bool, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, bank = signs(rows, dims, generator), signs(count, dims, generator)
    bank *= 2.0 ** torch.randint(-3, 4, (count, 1), generator=generator)
    options: dict[str, Any] = {"k": k}
    if excludes:
        options["exclude"] = torch.randint(-1, count, (rows,), generator=generator)
    if masks:
        options["valid"] = torch.rand(count, generator=generator) < 0.6
    cosines, indices = nearest_neighbors(query.to(dtype), bank.to(dtype), **options)
    exact_cosines, exact_indices = reference.nearest_neighbors(query, bank, **options)
    assert torch.equal(indices, exact_indices)
    assert torch.equal(cosines.double(), exact_cosines)


@given(st.integers(1, 30), st.integers(1, 400), st.integers(1, 70), st.integers(1, 60), st.integers(0, 10**6))
def test_sorted_and_none_is_nearer(rows: int, count: int, dims: int, k: int, seed: int) -> None:
    query, bank = normal(rows, dims, seed=seed), normal(count, dims, seed=seed + 1)
    cosines, indices = nearest_neighbors(query, bank, k=k)
    exact = torch.nn.functional.normalize(query.double()) @ torch.nn.functional.normalize(bank.double()).T  # (B, M)
    present = min(k, count)
    found = indices[:, :present]
    assert bool((cosines[:, :-1] >= cosines[:, 1:]).all())
    torch.testing.assert_close(cosines[:, :present].double(), exact.gather(1, found), rtol=0, atol=1e-6)
    rest = exact.scatter(1, found, -math.inf).max(dim=1).values  # a repeated index would leave its twin here
    assert bool((rest <= cosines[:, present - 1] + 1e-6).all())
    assert bool((indices[:, present:] == -1).all())
    assert all(len(set(row)) == present for row in found.tolist())


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_equal_rows_come_in_order_of_index(dtype: torch.dtype) -> None:
    """Rows i, i + 333 and i + 666 lie in other places of other tiles, and yet have the same cosines to the bit."""
    query, bank = normal(50, 37).to(dtype), normal(333, 37, seed=1).to(dtype)
    cosines, indices = nearest_neighbors(query, bank.repeat(3, 1), k=30)
    single_cosines, single = nearest_neighbors(query, bank, k=10)
    assert torch.equal(indices, (single.unsqueeze(-1) + torch.tensor([0, 333, 666])).flatten(1))
    assert torch.equal(cosines, single_cosines.repeat_interleave(3, dim=1))


def test_equal_rows_beyond_k_are_left_out_from_the_last() -> None:
    for k in (1, 7, 16, 100, 256):
        indices = nearest_neighbors(normal(3, 5), normal(1, 5).expand(700, -1), k=k)[1]
        assert torch.equal(indices, torch.arange(k).expand(3, -1))


@pytest.mark.parametrize("k", [1, 2, 17, 255, 256])
@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_any_k_and_order_of_the_bank(k: int, order: str) -> None:
    """Where cosines ascend, every row of the bank is among the nearest when it comes."""
    angles = torch.linspace(0.1, 3, 1500, dtype=torch.float64)
    angles = {"ascending": angles.flip(0), "descending": angles, "random": angles[torch.randperm(1500)]}[order]
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    query = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, -0.02]], dtype=torch.float64)
    cosines, indices = nearest_neighbors(query, bank, k=k)
    exact_cosines, exact_indices = reference.nearest_neighbors(query, bank, k=k)
    assert torch.equal(indices, exact_indices)
    torch.testing.assert_close(cosines, exact_cosines, rtol=0, atol=1e-14)


@pytest.mark.parametrize("k", [1, 5, 24, 200])
@pytest.mark.parametrize("rows", [1, 16, 17, 33, 75])
def test_cosines_of_any_size_and_sign(rows: int, k: int) -> None:
    """The last bit or a factor of 2^80 tells neighbors apart; every tenth cosine is 0, and many are equal.

    Bank rows (x, 1) with |x| < 2^-13 have norm 1 in float32, so x is the cosine to the bit. Of the 1400 that nearly tie
    CUDA compares 512 exactly: 200 neighbors are nearest up to rounding there, with cosines that are theirs to the bit.
    """
    generator = torch.Generator().manual_seed(rows)
    size = 2.0 ** torch.randint(-93, -13, (1500,), generator=generator)
    x = size * (1 + torch.randint(4, (1500,), generator=generator) * 2.0**-23)
    x *= torch.randint(2, (1500,), generator=generator) * 2 - 1
    x[::10] = 0
    signs_of_queries = torch.randint(2, (rows, 1), generator=generator) * 2.0 - 1
    query = torch.cat([signs_of_queries, torch.zeros(rows, 1)], dim=1)
    cosines, indices = nearest_neighbors(query, torch.stack([x, torch.ones(1500)], dim=1), k=k)
    exact, order = (signs_of_queries * x).sort(dim=1, descending=True, stable=True)
    assert torch.equal(cosines, (signs_of_queries * x).gather(1, indices))
    if EMULATED and k == 200:
        assert all(len(found.unique()) == k for found in indices)
        torch.testing.assert_close(cosines, exact[:, :k], rtol=0, atol=1e-5)
        return
    assert torch.equal(indices, order[:, :k])
    assert torch.equal(cosines, exact[:, :k])


def test_own_entries_are_excluded() -> None:
    bank = normal(300, 20)
    cosines, indices = nearest_neighbors(bank, bank, k=5, exclude=torch.arange(300))
    with_self = nearest_neighbors(bank, bank, k=6)
    assert torch.equal(with_self[1][:, 0], torch.arange(300))
    assert torch.equal(indices, with_self[1][:, 1:])
    assert torch.equal(cosines, with_self[0][:, 1:])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_invalid_rows_may_hold_anything(dtype: torch.dtype, share: float) -> None:
    query, bank = normal(21, 33).to(dtype), normal(1000, 33, seed=1).to(dtype)
    valid = torch.rand(1000, generator=torch.Generator().manual_seed(2)) >= share
    for garbage in (math.nan, math.inf, -math.inf, torch.finfo(dtype).max, 0.0):
        bank[~valid] = garbage
        cosines, indices = nearest_neighbors(query, bank, k=9, valid=valid)
        compact_cosines, compact = nearest_neighbors(query, bank[valid], k=9)
        rows_of_bank = torch.cat([valid.nonzero().flatten(), torch.tensor([-1])])
        assert torch.equal(indices, rows_of_bank[compact])
        assert torch.equal(cosines, compact_cosines)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_query_that_is_not_finite_spoils_itself_alone(value: float) -> None:
    query, bank = normal(20, 6), normal(90, 6, seed=1)
    clean = nearest_neighbors(query, bank, k=4)
    query[13, 2] = value
    cosines, indices = nearest_neighbors(query, bank, k=4)
    assert bool(cosines[13].isnan().all())
    assert indices[13].tolist() == [-1] * 4
    others = torch.arange(20) != 13
    assert torch.equal(indices[others], clean[1][others])
    assert torch.equal(cosines[others], clean[0][others])
    for empty in (bank[:0], bank[:2]):
        assert bool(nearest_neighbors(query, empty, k=4)[0][13].isnan().all())


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 555, 899])
def test_a_valid_row_that_is_not_finite_spoils_everything(value: float, where: int) -> None:
    query, bank = normal(20, 6), normal(900, 6, seed=1)
    bank[where, 5] = value
    cosines, indices = nearest_neighbors(query, bank, k=4, exclude=torch.full((20,), where))
    assert bool(cosines.isnan().all())
    assert indices.tolist() == [[-1] * 4] * 20


@pytest.mark.usefixtures("backend")
def test_zero_rows_have_cosine_zero() -> None:
    query, bank = torch.zeros(2, 3), torch.tensor([[-1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    query[1, 0] = 5
    cosines, indices = nearest_neighbors(query, bank, k=3)
    assert cosines.tolist() == [[0, 0, 0], [1, 0, -1]]
    assert indices.tolist() == [[0, 1, 2], [2, 1, 0]]


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_rows_of_any_finite_scale(dtype: torch.dtype) -> None:
    query, bank = normal(30, 8).double(), normal(200, 8, seed=1).double()
    exact = reference.nearest_neighbors(query.to(dtype).double(), bank.to(dtype).double(), k=3)
    limits = torch.finfo(dtype)
    for exponent in (math.log2(limits.max) - 5, 20, -5, max(math.log2(limits.tiny) + 30, -30)):
        scale = 2.0 ** int(exponent)
        if not limits.tiny * 2**12 < scale < limits.max / 2**4:
            continue
        cosines, indices = nearest_neighbors((query.to(dtype) * scale), (bank.to(dtype) * scale), k=3)
        assert torch.equal(indices, exact[1])
        torch.testing.assert_close(cosines.double(), exact[0], rtol=0, atol=2 * limits.eps)
    # Norms below 1e-12 count as 1e-12, so cosines shrink.
    if limits.tiny < 1e-20:
        tiny = nearest_neighbors(query.to(dtype), bank.to(dtype) * 1e-16, k=3)[0]
        assert bool((tiny.abs() < 1e-2).all())
        assert bool((tiny > 0).all())


@pytest.mark.parametrize("rows", [1, 40])
def test_cosines_of_long_rows_keep_their_digits(rows: int) -> None:
    """One chain of float32 over so many positive elements would be off by 4e-6."""
    query, bank = normal(rows, 16384).abs(), normal(50, 16384, seed=1).abs()
    cosines = nearest_neighbors(query, bank, k=50)[0]
    exact = reference.nearest_neighbors(query.double(), bank.double(), k=50)[0]
    torch.testing.assert_close(cosines.double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "count", "dims"), [(1, 3000, 20), (40, 2000, 33), (1100, 130, 8), (1537, 40, 3), (70, 10, 300)], ids=str
)
def test_same_bits_on_any_number_of_threads(rows: int, count: int, dims: int) -> None:
    query, bank = normal(rows, dims), normal(-(-count // 2), dims, seed=1).repeat(2, 1)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 4, 7):
            torch.set_num_threads(number)
            results.append(nearest_neighbors(query, bank, k=25))
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(x, y) for result in results[1:] for x, y in zip(result, results[0], strict=True))
    exact = reference.nearest_neighbors(query.double(), bank.double(), k=25)[0]
    torch.testing.assert_close(results[0][0].double(), exact, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("backend")
def test_results_never_require_grad() -> None:
    cosines, indices = nearest_neighbors(normal(3, 4).requires_grad_(), normal(9, 4).requires_grad_(), k=2)
    assert not cosines.requires_grad
    assert not indices.requires_grad


QUERY, STORED = torch.ones(2, 3), torch.ones(5, 3)
GOOD_CALL: dict[str, Any] = {"query": QUERY, "bank": STORED, "k": 2}
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": [1.0]}, TypeError, "query: expected a tensor, got list"),
    ({"query": torch.ones(3)}, ValueError, r"query: expected shape \(B, D\) with D > 0, got \(3,\)"),
    ({"query": torch.ones(2, 0)}, ValueError, r"query: expected shape \(B, D\) with D > 0, got \(2, 0\)"),
    ({"query": QUERY.int()}, TypeError, "query: expected dtype float16, .*float64, got torch.int32"),
    ({"bank": None}, TypeError, "bank: expected a tensor, got NoneType"),
    ({"bank": torch.ones(5, 4)}, ValueError, r"bank: expected shape \(any number, 3\), got \(5, 4\)"),
    ({"bank": torch.ones(3)}, ValueError, r"bank: expected shape \(any number, 3\), got \(3,\)"),
    ({"bank": STORED.double()}, TypeError, "bank: expected dtype torch.float32 like query, got torch.float64"),
    ({"bank": STORED.to("meta")}, ValueError, "bank: expected device cpu like query, got meta"),
    ({"k": 0}, ValueError, "k: expected 1 to 256, got 0"),
    ({"k": 257}, ValueError, "k: expected 1 to 256, got 257"),
    ({"k": 1.0}, TypeError, "k: expected an integer, got 1.0"),
    ({"k": True}, TypeError, "k: expected an integer, got True"),
    ({"exclude": [0, 1]}, TypeError, "exclude: expected a tensor, got list"),
    ({"exclude": torch.zeros(2)}, TypeError, "exclude: expected dtype torch.int64, got torch.float32"),
    (
        {"exclude": torch.zeros(5).long()},
        ValueError,
        r"exclude: expected shape \(2,\), one for each row of query, got \(5,\)",
    ),
    ({"exclude": torch.zeros(2, 1).long()}, ValueError, r"exclude: expected shape \(2,\), .* got \(2, 1\)"),
    (
        {"exclude": torch.zeros(2, device="meta").long()},
        ValueError,
        "exclude: expected device cpu like query, got meta",
    ),
    ({"valid": 1}, TypeError, "valid: expected a tensor, got int"),
    ({"valid": torch.ones(5)}, TypeError, "valid: expected dtype torch.bool, got torch.float32"),
    (
        {"valid": torch.ones(2).bool()},
        ValueError,
        r"valid: expected shape \(5,\), one for each row of bank, got \(2,\)",
    ),
    (
        {"valid": torch.ones(5, device="meta").bool()},
        ValueError,
        "valid: expected device cpu like bank, got meta",
    ),
]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        nearest_neighbors(**(GOOD_CALL | arguments))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (arguments, error)
        for arguments, error, message in BAD_CALLS
        if not message.endswith(("list", "NoneType", "int", "1.0", "True"))  # refused or converted by the schema
    ],
)
def test_bad_arguments_are_named_by_the_op_too(arguments: dict[str, Any], error: type[Exception]) -> None:
    (name,) = arguments
    with pytest.raises(error, match=f"^{name}: expected "):
        torch.ops.deepclust_ext.nearest_neighbors(**(GOOD_CALL | arguments))


def test_meta_tensors_give_shapes() -> None:
    results = nearest_neighbors(torch.ones(6, 4, device="meta"), torch.ones(9, 4, device="meta"), k=3)
    assert [(tuple(result.shape), result.dtype) for result in results] == [
        ((6, 3), torch.float32),
        ((6, 3), torch.int64),
    ]


@pytest.mark.skipif(EMULATED, reason="the emulated device has one instruction set")
def test_instruction_sets_agree() -> None:
    script = (
        "import torch\n"
        "for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):\n"
        "    torch.manual_seed(0)\n"
        "    query, bank = torch.randn(45, 37).to(dtype), torch.randn(500, 37).to(dtype)\n"
        "    results = deepclust_ext.nearest_neighbors(query, bank, k=20)\n"
        "    print(*(float(x).hex() for result in results for x in result.flatten()))\n"
    )
    # Without fused multiply-adds only to rounding.
    for ours, other in zip(*results_by_instruction_set(script), strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(other), rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(EMULATED, reason="the emulated device takes minutes for so many elements")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer multiplies memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_does_not_grow_with_the_bank(dtype: str) -> None:
    """A bank of 150000 rows takes at most 4 MB; its float32 copy would take 38 MB, the matrix of cosines 150 MB."""
    extra = peak_extra_megabytes(
        f"bank = torch.ones(150_000, 64, dtype=torch.{dtype})\n"
        f"query = torch.randn(256, 64).to(torch.{dtype})\n"
        "valid = torch.ones(150_000, dtype=torch.bool)",
        "deepclust_ext.nearest_neighbors(query[:8], bank[:300], k=10, valid=valid[:300])",
        "deepclust_ext.nearest_neighbors(query, bank, k=10, valid=valid)",
    )
    assert extra <= 4


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("op", [nearest_neighbors, diffused_neighbor_gather])
@pytest.mark.parametrize("wrong", [-2, 4, 10**12])
def test_an_excluded_row_that_the_bank_does_not_have(op: Any, wrong: int) -> None:
    options: dict[str, Any] = {"k": 2} if op is nearest_neighbors else {"num_neighbors": 2}
    with pytest.raises(ValueError, match=f"^exclude: expected rows of bank, 0 to 3, or -1 for none, got {wrong}$"):
        op(torch.ones(3, 2), torch.tensor(BANK), exclude=torch.tensor([0, wrong, -1]), **options)
    with pytest.raises(ValueError, match=f"^exclude: expected -1, since bank has no rows, got {wrong}$"):
        op(torch.ones(2, 2), torch.ones(0, 2), exclude=torch.tensor([-1, wrong]), **options)
