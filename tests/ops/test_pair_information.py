"""Hand cases, the plain formula, edges and messages of pair_information and pair_statistics."""

import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from deepclust_ext import pair_information, reference
from deepclust_ext.ops import pair_statistics
from deepclust_ext.ops._checks import SUPPORTED_DTYPES
from tests.helpers import (
    DEVICES,
    EMULATED,
    assert_error_budget,
    peak_extra_megabytes,
    results_by_instruction_set,
    same_bits,
)

NAMES = ("rows", "weight", "teacher_rows", "teacher_weight", "distribution", "pair_weights")

#: Pairs, clusters and features: one of each, odd ones, full blocks and one more, many features, many clusters.
SIZES = [
    (1, 1, 1),
    (1, 2, 3),
    (3, 1, 5),
    (5, 17, 33),
    (16, 16, 16),
    (33, 33, 17),
    (64, 10, 384),
    (65, 131, 64),
    (3, 5, 1100),
    (700, 10, 8),
    (2, 5000, 3),
]


def heads(pairs: int, clusters: int, dims: int, device: str = "cpu") -> tuple[Tensor, ...]:
    """Return what pair_information takes, in float64: unit rows, a distribution that sums to 1, weights below 1."""
    generator = torch.Generator().manual_seed(pairs + clusters)
    shapes = ((2 * pairs, dims), (clusters, dims)) * 2
    directions = [normalize(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
    shares = 0.1 + torch.rand(clusters, generator=generator, dtype=torch.float64)
    weights = torch.rand(pairs, generator=generator, dtype=torch.float64)
    return tuple(x.to(device) for x in (*directions, shares / shares.sum(), weights))


def shares_of(rows: Tensor, weight: Tensor, temperature: float) -> Tensor:
    return (rows @ weight.T / temperature).softmax(dim=1)


def plain_information(
    rows: Tensor,
    weight: Tensor,
    teacher_rows: Tensor,
    teacher_weight: Tensor,
    distribution: Tensor,
    pair_weights: Tensor,
    *,
    beta: float,
    temperature: float,
) -> Tensor:
    """The formula as the paper has it: softmax, power, sum, logarithm."""
    students, teachers = shares_of(rows, weight, temperature), shares_of(teacher_rows, teacher_weight, temperature)
    joint = (students * teachers.roll(len(pair_weights), 0)) ** beta / distribution
    return (pair_weights.repeat(2) * joint.sum(dim=1).log()).mean()


# Teachers' shares (1/5, 4/5) and (2/3, 1/3), of the rows (1, 0) and (0, 1) at temperature 2.
TEACHER = [[0.0, 2 * math.log(2)], [2 * math.log(4), 0.0]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("beta", "information", "first", "second"),
    [
        # Sums (1/4 2/3) / (1/4) + (3/4 1/3) / (1/2) = 7/6 and (1/2 1/5) / (1/4) + (1/2 4/5) / (1/2) = 6/5. The shares
        # of the first cluster in them are 4/7 and 1/3, those of the student 1/4 and 1/2.
        (1.0, math.log(7 / 5) / 4, (4 / 7 - 1 / 4) / 4, (1 / 3 - 1 / 2) / 4),
        # 4 / 36 + 2 / 16 = 17/72 and 4 / 100 + 32 / 100 = 9/25.
        (2.0, math.log(17 / 200) / 4, (8 / 17 - 1 / 4) / 2, (1 / 9 - 1 / 2) / 2),
    ],
)
def test_hand_case(backend: str, beta: float, information: float, first: float, second: float, device: str) -> None:
    # One pair of weight 1/2. The student's shares are (1/4, 3/4) and (1/2, 1/2).
    rows, log_3 = torch.eye(2, device=device), math.log(3)
    weight, teacher = (torch.tensor(x, device=device) for x in ([[0.0, 0.0], [2 * log_3, 0.0]], TEACHER))
    distribution, pair_weights = (torch.tensor(x, device=device) for x in ([0.25, 0.5], [0.5]))
    value, grad_rows, grad_weight = pair_information(
        rows, weight, rows, teacher, distribution, pair_weights, beta=beta, temperature=2.0
    )
    assert float(value) == pytest.approx(information, rel=1e-5)
    assert grad_weight.flatten().tolist() == pytest.approx([x / 2 for x in (first, second, -first, -second)], rel=1e-5)
    assert grad_rows.flatten().tolist() == pytest.approx([-first * log_3, 0, -second * log_3, 0], rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_hand_case_of_statistics(backend: str, device: str) -> None:
    # Rows 0 and 2 are a pair with both shares of the teacher, rows 1 and 3 one that is sure of itself.
    rows = torch.eye(2, device=device)[[0, 0, 1, 0]]
    sums, agreement, largest = pair_statistics(rows, torch.tensor(TEACHER, device=device), temperature=2.0)
    assert sums.tolist() == pytest.approx([19 / 15, 41 / 15], rel=1e-6)
    assert agreement.tolist() == pytest.approx([2 / 5, 17 / 25], rel=1e-6)
    assert float(largest) == pytest.approx(23 / 30, rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta", [0.6, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_the_plain_formula_and_its_gradient(
    backend: str, size: tuple[int, int, int], beta: float, device: str
) -> None:
    tensors = heads(*size, device)
    leaves = [x.clone().requires_grad_() for x in tensors]
    expected = plain_information(*leaves, beta=beta, temperature=0.1)
    truth = [expected.detach(), *torch.autograd.grad(expected, leaves[:2])]
    results = pair_information(*tensors, beta=beta, temperature=0.1)
    for ours, exact in zip(results, truth, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-11)
    value, none, grad_weight = pair_information(*tensors, beta=beta, temperature=0.1, want_rows=False)
    assert none.shape == (0, size[2])
    assert none.dtype == torch.float64
    torch.testing.assert_close([value, grad_weight], [truth[0], truth[2]], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_statistics_are_those_of_the_shares(backend: str, size: tuple[int, int, int], device: str) -> None:
    rows, weight = heads(*size, device)[2:4]
    shares = shares_of(rows, weight, 0.1)
    first, second = shares.chunk(2)
    sums, agreement, largest = pair_statistics(rows, weight, temperature=0.1)
    torch.testing.assert_close(sums, shares.sum(dim=0))
    torch.testing.assert_close(agreement, (first * second).sum(dim=1))
    torch.testing.assert_close(largest, shares.amax(dim=1).mean())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("temperature", [1e-2, 1e-4, 1e-30])
@pytest.mark.parametrize("beta", [0.6, 1.0])
def test_finite_where_shares_vanish(backend: str, beta: float, temperature: float, device: str) -> None:
    """Student and teacher are each sure of another cluster: logits are 200 apart, or many more."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0]], device=device)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], device=device)
    tensors = rows, weight, -rows, weight, torch.full((2,), 0.5, device=device), torch.ones(1, device=device)
    assert plain_information(*tensors, beta=beta, temperature=temperature).isinf()
    value, grad_rows, grad_weight = pair_information(*tensors, beta=beta, temperature=temperature)
    # Each product of shares is e^-(2 / temperature), so the joint shares are equal.
    assert float(value) == pytest.approx(math.log(4) - beta * 2 / temperature, rel=1e-5)
    slope = beta / 2 / temperature
    assert grad_weight.flatten().tolist() == pytest.approx([-slope, 0, slope, 0], rel=1e-5)
    assert grad_rows.flatten().tolist() == pytest.approx([-slope, 0] * 2, rel=1e-5)
    sums, agreement, largest = pair_statistics(rows, weight, temperature=temperature)
    assert sums.tolist() == pytest.approx([2, 0], abs=1e-30)
    assert [float(agreement), float(largest)] == [1, 1]


@pytest.mark.parametrize("device", DEVICES)
def test_sharp_shares_in_float32(device: str) -> None:
    tensors = heads(70, 60, 20, device)
    narrow = [x.float() for x in tensors]
    options: dict[str, Any] = {"beta": 0.6, "temperature": 0.005}
    assert plain_information(*narrow, **options).isinf()
    ours, naive, truth = (
        function(*given, **options)
        for function, given in (
            (pair_information, narrow),
            (reference.pair_information, narrow),
            (reference.pair_information, [x.double() for x in narrow]),
        )
    )
    for position, results in enumerate(zip(ours, naive, truth, strict=True)):
        assert_error_budget(*results, f"output {position}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shares_of_the_distribution_that_vanish(backend: str, dtype: torch.dtype, device: str) -> None:
    tiny = torch.finfo(dtype).tiny
    tensors: dict[str, Any] = dict(zip(NAMES, (x.to(dtype) for x in heads(20, 5, 6, device)), strict=True))
    distribution = tensors.pop("distribution")
    distribution[1], distribution[3] = 0, tiny / 8  # which is denormal
    results, expected = (
        pair_information(**tensors, distribution=shares) for shares in (distribution, distribution.clamp(min=tiny))
    )
    assert all(bool(x.isfinite().all()) for x in results)
    assert all(map(same_bits, results, expected))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_half_precision_computes_in_float32(dtype: torch.dtype, device: str) -> None:
    tensors = [x.to(dtype) for x in heads(37, 21, 19, device)]
    tensors[4][2] = torch.finfo(torch.float16).tiny / 4  # denormal in float16, but in float32 a number as any other
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for ours, by_reference, count in (
        (pair_information, reference.pair_information, 6),
        (pair_statistics, reference.pair_statistics, 2),
    ):
        given = tensors[:count]
        results, naive, truth = (
            function(*inputs)
            for function, inputs in (
                (ours, given),
                (by_reference, [x.to(wide) for x in given]),
                (by_reference, [x.double() for x in given]),
            )
        )
        for position, (mine, theirs, exact) in enumerate(zip(results, naive, truth, strict=True)):
            assert mine.dtype == wide
            assert_error_budget(mine, theirs, exact, f"output {position}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_no_pairs(backend: str, dtype: torch.dtype, device: str) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows, weight, *teacher, distribution, _ = (x.to(dtype) for x in heads(1, 4, 3, device))
    none = rows[:0]
    for want_rows in (True, False):
        value, grad_rows, grad_weight = pair_information(
            none, weight, none, teacher[1], distribution, distribution[:0], want_rows=want_rows
        )
        assert (value.shape, float(value)) == ((), 0)
        assert grad_rows.shape == (0, 3)
        assert torch.equal(grad_weight, torch.zeros(4, 3, dtype=wide, device=device))
        assert value.dtype == grad_rows.dtype == wide
    sums, agreement, largest = pair_statistics(none, weight)
    assert torch.equal(sums, torch.zeros(4, dtype=wide, device=device))
    assert agreement.shape == (0,)
    assert (largest.shape, float(largest)) == ((), 0)
    assert agreement.dtype == largest.dtype == wide


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_makes_all_results_nan(backend: str, name: str, value: float, device: str) -> None:
    for place in (0, -1):
        tensors: dict[str, Any] = dict(zip(NAMES, (x.float() for x in heads(70, 35, 9, device)), strict=True))
        tensors[name].view(-1)[place] = value
        for want_rows in (True, False):
            assert all(bool(x.isnan().all()) for x in pair_information(**tensors, want_rows=want_rows))
        if name in ("rows", "weight"):
            assert all(bool(x.isnan().all()) for x in pair_statistics(tensors["rows"], tensors["weight"]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("large", [0, 2])
def test_logits_that_overflow_count_as_not_finite(backend: str, large: int, device: str) -> None:
    tensors = [x.float() for x in heads(40, 35, 9, device)]
    tensors[large][-1] *= 1e25
    tensors[large + 1][-1] *= 1e25
    assert all(bool(x.isnan().all()) for x in pair_information(*tensors))
    assert all(bool(x.isnan().all()) for x in pair_statistics(tensors[large], tensors[large + 1]))


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_are_not_contiguous(device: str) -> None:
    rows, weight, teacher_rows, teacher_weight, distribution, weights = (x.float() for x in heads(40, 21, 9, device))
    apart = (
        rows.T.contiguous().T,
        torch.stack([weight, weight + 1], dim=2)[:, :, 0],
        torch.cat([teacher_rows, teacher_rows], dim=1)[:, :9],
        teacher_weight.flip(0).contiguous().flip(0),
        torch.stack([distribution, distribution + 1], dim=1)[:, 0],
        weights[:1].expand(40),
    )
    plain = rows, weight, teacher_rows, teacher_weight, distribution, weights[:1].repeat(40)
    assert all(map(same_bits, pair_information(*apart), pair_information(*plain)))
    assert all(map(same_bits, pair_statistics(*apart[:2]), pair_statistics(*plain[:2])))


@pytest.mark.parametrize("size", [(300, 100, 40), (1100, 10, 17), (20, 1500, 9)], ids=str)
def test_the_same_bits_on_any_number_of_threads(size: tuple[int, int, int]) -> None:
    tensors = [x.float() for x in heads(*size)]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2) if EMULATED else (1, 2, 3):
            torch.set_num_threads(count)
            results.append([*pair_information(*tensors), *pair_statistics(*tensors[:2])])
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(map(same_bits, results[0], others))


def test_pairs_may_change_places() -> None:
    rows, weight, teacher_rows, teacher_weight, distribution, weights = heads(50, 12, 7)
    value, grad_rows, grad_weight = pair_information(rows, weight, teacher_rows, teacher_weight, distribution, weights)
    order = torch.randperm(50)
    turned = torch.cat([order + 50, order])  # another order of pairs, and of the rows of each
    others = pair_information(rows[turned], weight, teacher_rows[turned], teacher_weight, distribution, weights[order])
    for ours, expected in zip(others, (value, grad_rows[turned], grad_weight), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(EMULATED, reason="the emulated device has one instruction set")
def test_instruction_sets_agree() -> None:
    script = (
        "import torch\n"
        "from tests.same_bits import on_grid\n"
        "from tests.ops.test_pair_information import heads\n"
        "for dtype in (torch.float32, torch.float64):\n"
        "  tensors = [on_grid(x).to(dtype) for x in heads(70, 45, 33)]\n"
        "  for x in (*deepclust_ext.pair_information(*tensors), *deepclust_ext.ops.pair_statistics(*tensors[:2])):\n"
        "    print(*(float(y).hex() for y in x.flatten()))\n"
    )
    for ours, other in zip(*results_by_instruction_set(script), strict=True):
        assert ours == pytest.approx(other, rel=1e-3, abs=1e-6)


GOOD = dict(zip(NAMES, (x.float() for x in heads(2, 3, 5)), strict=True))
OF_FLOAT32 = "expected dtype torch.float32 like rows, got"
BAD_ROWS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rows": [1.0]}, TypeError, "rows: expected a tensor, got list"),
    ({"rows": GOOD["rows"].int()}, TypeError, "rows: expected dtype float16, .* or float64, got torch.int32"),
    ({"rows": torch.ones(4)}, ValueError, r"rows: expected shape \(2B, E\) with E > 0, got \(4,\)"),
    ({"rows": torch.ones(4, 0)}, ValueError, r"rows: expected shape \(2B, E\) with E > 0, got \(4, 0\)"),
    ({"rows": torch.ones(3, 5)}, ValueError, r"rows: expected shape \(2B, E\) with E > 0, got \(3, 5\)"),
    ({"weight": None}, TypeError, "weight: expected a tensor, got NoneType"),
    ({"weight": torch.ones(3, 4)}, ValueError, r"weight: expected shape \(any number, 5\), got \(3, 4\)"),
    ({"weight": torch.ones(0, 5)}, ValueError, r"weight: expected shape \(K, E\) with K > 0, got \(0, 5\)"),
    ({"weight": GOOD["weight"].half()}, TypeError, f"weight: {OF_FLOAT32} torch.float16"),
    ({"weight": GOOD["weight"].to("meta")}, ValueError, "weight: expected device cpu like rows, got meta"),
    ({"temperature": 0}, ValueError, "temperature: expected a finite number above 0, got 0"),
    ({"temperature": 1e-31}, ValueError, "temperature: expected a number from 1e-30 to 1e[+]30, got 1e-31"),
    ({"temperature": "hot"}, TypeError, "temperature: expected a number, got 'hot'"),
]
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    *BAD_ROWS,
    ({"teacher_rows": 1}, TypeError, "teacher_rows: expected a tensor, got int"),
    ({"teacher_rows": torch.ones(2, 5)}, ValueError, r"teacher_rows: expected shape \(4, 5\), got \(2, 5\)"),
    ({"teacher_weight": torch.ones(4, 5)}, ValueError, r"teacher_weight: expected shape \(3, 5\), got \(4, 5\)"),
    ({"teacher_weight": GOOD["weight"].double()}, TypeError, f"teacher_weight: {OF_FLOAT32} torch.float64"),
    ({"distribution": [1.0]}, TypeError, "distribution: expected a tensor, got list"),
    ({"distribution": torch.ones(3, 1)}, ValueError, r"distribution: expected shape \(3,\), got \(3, 1\)"),
    ({"distribution": torch.ones(2)}, ValueError, r"distribution: expected shape \(3,\), got \(2,\)"),
    ({"pair_weights": torch.ones(4)}, ValueError, r"pair_weights: expected shape \(2,\), got \(4,\)"),
    ({"pair_weights": torch.ones(2).long()}, TypeError, "pair_weights: expected dtype float16, .*, got torch.int64"),
    ({"pair_weights": torch.ones(2).double()}, TypeError, f"pair_weights: {OF_FLOAT32} torch.float64"),
    (
        {"pair_weights": torch.ones(2, device="meta")},
        ValueError,
        "pair_weights: expected device cpu like rows, got meta",
    ),
    ({"beta": 0}, ValueError, "beta: expected a finite number above 0, got 0"),
    ({"beta": 1e31}, ValueError, r"beta: expected a number from 1e-30 to 1e[+]30, got 1e[+]31"),
    ({"beta": True}, TypeError, "beta: expected a number, got True"),
    ({"want_rows": 1}, TypeError, "want_rows: expected True or False, got 1"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        pair_information(**(GOOD | arguments))


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ROWS)
def test_bad_arguments_of_statistics(
    arguments: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        pair_statistics(**({name: GOOD[name] for name in ("rows", "weight")} | arguments))


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named_by_the_op_too(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    if message.endswith(("got list", "got int", "NoneType", "'hot'", "True", "got 1", "1e-31", r"1e[+]31")):
        pytest.skip("refused by the schema, or by the public function alone")
    name = message.split(":")[0]
    with pytest.raises(error, match=f"^{name}: expected "):
        torch.ops.deepclust_ext.pair_information(**(GOOD | arguments))
    if name in ("rows", "weight", "temperature"):
        given = {key: GOOD[key] for key in ("rows", "weight")} | arguments
        with pytest.raises(error, match=f"^{name}: expected "):
            torch.ops.deepclust_ext.pair_statistics(**given)


@pytest.mark.skipif(EMULATED, reason="a hundred million shares take long on the emulated device")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer multiplies memory")
def test_no_matrix_of_shares_in_memory() -> None:
    """Both ops take at most 60 MB for 16384 pairs and K = 4000; the shares of one head alone take 524 MB."""
    extra = peak_extra_megabytes(
        "rows, weight = torch.randn(32768, 8), torch.randn(4000, 8)\n"
        "given = weight, rows, weight, torch.full((4000,), 1 / 4000), torch.ones(16384)",
        "deepclust_ext.pair_information(rows[:200], *given[:1], rows[:200], *given[2:4], given[4][:100]); "
        "deepclust_ext.ops.pair_statistics(rows[:200], weight)",
        "deepclust_ext.pair_information(rows, *given); deepclust_ext.ops.pair_statistics(rows, weight)",
    )
    assert extra <= 60
