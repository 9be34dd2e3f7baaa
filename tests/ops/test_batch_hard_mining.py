"""Hand cases, properties and edges of batch-hard mining."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext import HardPairs, _extension, batch_hard_mining, reference
from tests.helpers import EMULATED, KERNELS_ALONE, results_by_instruction_set

CLAMPED = 1e-6  # the smallest distance there is

# Distances by hand:      teacher-student        teacher-teacher
TEACHER = [[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]  # 1   13^.5  4     0 3 4
STUDENT = [[1.0, 0.0], [3.0, 2.0], [0.0, 4.0]]  # 2   2      5     3 0 5
#                                                 17^.5 13^.5 0    4 5 0


def make_batch(kind: str, count: int, depth: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Batches that send rows down every way the kernel has: by order, by candidates, by product."""
    generator = torch.Generator().manual_seed(count)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, depth, generator=generator, dtype=torch.float64)

    if kind == "random":
        teacher, student = normal(count), normal(count)
    elif kind == "cone":  # students far from all teachers: no anchor has a negative
        teacher, student = 0.1 * normal(count) + 1, 0.1 * normal(count) - 1
    else:
        centers = normal(1 if kind == "collapsed" else 8)
        spread, step = {"aligned": (0.3, 0.05), "overlapping": (1, 1), "few": (0.3, 0.4), "collapsed": (1e-4, 1e-4)}[
            kind
        ]
        teacher = centers[torch.randint(len(centers), (count,), generator=generator)] + spread * normal(count)
        student = teacher + step * normal(count)
    return teacher.to(dtype), student.to(dtype)


KINDS = ["random", "cone", "aligned", "overlapping", "few", "collapsed"]
# The ways that a kind decides between are those of the CPU; the emulated device has one for many rows and one for few.
COUNTS = {kind: (3, 64, 257, 1030) if not EMULATED or kind == "random" else (3, 64, 257) for kind in KINDS}
KINDS_AND_COUNTS = [(kind, count) for kind, counts in COUNTS.items() for count in counts]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_hand_case(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "reference":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    pairs = batch_hard_mining(torch.tensor(TEACHER), torch.tensor(STUDENT), normalize=False)
    assert pairs.positive_index.tolist() == [0, 1, 2]
    assert pairs.negative_index.tolist() == [1, 0, 1]
    assert pairs.positive_distance.tolist() == pytest.approx([1, 2, CLAMPED])
    assert pairs.negative_distance.tolist() == pytest.approx([13**0.5, 2, 13**0.5])
    assert pairs.positive_teacher_distance.tolist() == pytest.approx([CLAMPED] * 3)
    assert pairs.negative_teacher_distance.tolist() == pytest.approx([3, 3, 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "count"), KINDS_AND_COUNTS)
def test_every_way_finds_the_pairs_of_the_reference(kind: str, count: int, dtype: torch.dtype) -> None:
    teacher, student = make_batch(kind, count, 48, dtype)
    for normalize in (True, False):
        pairs = batch_hard_mining(teacher, student, normalize=normalize)
        truth = reference.batch_hard_mining(teacher.double(), student.double(), normalize=normalize)
        for indices, exact_indices, ours, exact in zip(pairs[:2], truth[:2], pairs[2:4], truth[2:4], strict=True):
            # Float32 may take another pair only where both are equally far to rounding. Normalizing a collapsed batch
            # in float32 rounds rows by a thousandth of their distances; the float64 reference itself cancels there.
            rounding = 1e-2 if kind == "collapsed" else 1e-6
            torch.testing.assert_close(ours.double(), exact, rtol=rounding, atol=1e-9)
            if kind != "collapsed":
                assert float((indices != exact_indices).double().mean()) <= (dtype == torch.float32) * 0.01
        same = (pairs.positive_index == truth.positive_index) & (pairs.negative_index == truth.negative_index)
        for ours, exact in zip(pairs[4:], truth[4:], strict=True):
            torch.testing.assert_close(ours[same].double(), exact[same], rtol=rounding, atol=1e-9)


def brute_force(teacher: Tensor, student: Tensor, anchor: int) -> tuple[int, int]:
    """Positive and negative of one anchor by direct differences."""
    among = (teacher - teacher[anchor]).square().sum(1).clamp(min=1e-12)  # (N,)
    across = (student - teacher[anchor]).square().sum(1).clamp(min=1e-12)  # (N,)
    negative = among > across[anchor]
    nearest = int(across.masked_fill(~negative, float("inf")).argmin()) if bool(negative.any()) else -1
    return int(across.masked_fill(negative, -float("inf")).argmax()), nearest


@pytest.mark.skipif(EMULATED, reason="4 billion pairs take hours on the emulated device")
@pytest.mark.parametrize(("dtype", "first"), [(torch.float32, 0), (torch.float64, 65_000)], ids=str)
def test_more_rows_than_a_16_bit_index_holds(dtype: torch.dtype, first: int) -> None:
    """Of all rows in the faster dtype: more pairs than 32 bits count; of the last ones in the other."""
    teacher, student = (x.mul(64).round() for x in make_batch("aligned", 66_000, 4, torch.float64))  # exact in float32
    # Of the last rows alone where a sanitizer multiplies the time; all of them take it half a minute.
    first = 65_000 if KERNELS_ALONE else first
    rows = teacher.to(dtype), student.to(dtype)
    pairs = batch_hard_mining(*rows, normalize=False, first_row=first, num_rows=66_000 - first)
    for anchor in (0, 1, 32_767, 40_001, 65_000, 65_535, 65_536, 65_999):
        if anchor >= first:
            place = anchor - first
            found = int(pairs.positive_index[place]), int(pairs.negative_index[place])
            assert found == brute_force(teacher, student, anchor)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([-1, 0, 2]), st.integers(0, 10**6))
def test_exact_on_integers_with_many_ties(count: int, depth: int, digits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0**digits
    teacher, student = (
        torch.randint(-2, 3, (count, depth), generator=generator, dtype=torch.float64) * scale for _ in range(2)
    )
    pairs = batch_hard_mining(teacher, student, normalize=False)
    for anchor in range(count):
        found = int(pairs.positive_index[anchor]), int(pairs.negative_index[anchor])
        if digits >= 0:  # every product and sum is exact, so every tie is one
            assert found == brute_force(teacher, student, anchor)
        else:
            expected = brute_force(teacher, student, anchor)
            for ours, exact in zip(found, expected, strict=True):
                distance = (student[[ours, exact]] - teacher[anchor]).square().sum(1)
                assert (ours < 0) == (exact < 0)
                assert abs(float(distance[0] - distance[1])) < 1e-12


@given(st.integers(2, 60), st.integers(0, 10**6))
def test_permuting_the_batch_permutes_the_pairs(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(count, 12, generator=generator) for _ in range(2))
    order = torch.randperm(count, generator=generator)
    plain, permuted = batch_hard_mining(teacher, student), batch_hard_mining(teacher[order], student[order])
    for before, after in (
        (plain.positive_index, permuted.positive_index),
        (plain.negative_index, permuted.negative_index),
    ):
        expected = torch.where(before[order] < 0, -1, torch.argsort(order)[before[order]])
        assert torch.equal(after, expected)


def test_equal_columns_give_the_lowest_index() -> None:
    teacher, student = make_batch("random", 200, 24)
    teacher, student = teacher.repeat(3, 1), student.repeat(3, 1)  # columns i, i + 200 and i + 400 are the same
    pairs = batch_hard_mining(teacher, student)
    assert int(pairs.negative_index.max()) < 200
    assert int(pairs.positive_index.max()) < 200
    single = batch_hard_mining(teacher[:200], student[:200])
    assert torch.equal(pairs.positive_index[:200], single.positive_index)
    assert torch.equal(pairs.negative_index[400:], single.negative_index)


def test_one_row_is_its_own_positive_and_has_no_negative() -> None:
    pairs = batch_hard_mining(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    assert pairs.positive_index.tolist() == [0]
    assert pairs.negative_index.tolist() == [-1]
    assert float(pairs.positive_distance) == pytest.approx(2**0.5)
    assert float(pairs.negative_distance) == float(pairs.negative_teacher_distance) == 0


def test_identical_rows_have_no_negative() -> None:
    teacher = torch.ones(70, 5)
    pairs = batch_hard_mining(teacher, 2 * torch.ones(70, 5), normalize=False)
    assert pairs.positive_index.tolist() == [0] * 70
    assert pairs.negative_index.tolist() == [-1] * 70
    assert pairs.positive_distance.tolist() == pytest.approx([5**0.5] * 70)


def test_zero_rows_normalize_to_zero() -> None:
    teacher, student = torch.eye(4), torch.eye(4)
    teacher[0] = student[1] = 0
    pairs = batch_hard_mining(teacher, student)
    truth = reference.batch_hard_mining(teacher.double(), student.double())
    assert torch.equal(pairs.positive_index, truth.positive_index)
    assert torch.equal(pairs.negative_index, truth.negative_index)
    torch.testing.assert_close(torch.stack(pairs[2:]).double(), torch.stack(truth[2:]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e-8, 1e25, 1e200])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_normalization_survives_any_finite_scale(dtype: torch.dtype, scale: float) -> None:
    teacher, student = make_batch("random", 50, 20, torch.float64)
    limits = torch.finfo(dtype)
    scale = min(max(scale, limits.tiny * 10), limits.max / 10)
    scaled = ((teacher * scale).to(dtype), (student * scale).to(dtype))
    if scale < 1e-11:  # norms below 1e-12 count as 1e-12, so rows shrink instead: finite, and no more is promised
        assert all(bool(result.isfinite().all()) for result in batch_hard_mining(*scaled))
        return
    expected = batch_hard_mining(scaled[0].double() / scale, scaled[1].double() / scale)
    for ours, exact in zip(batch_hard_mining(*scaled), expected, strict=True):
        torch.testing.assert_close(
            ours.double(), exact.double(), rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=1e-7
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["teacher", "student"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_non_finite_input_gives_nan_and_no_pair(
    value: float, where: str, normalize: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "reference":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    teacher, student = make_batch("random", 90, 10)
    (teacher if where == "teacher" else student)[77, 3] = value
    teacher.requires_grad_()
    pairs = batch_hard_mining(teacher, student, normalize=normalize)
    assert pairs.positive_index.tolist() == pairs.negative_index.tolist() == [-1] * 90
    assert all(bool(distance.isnan().all()) for distance in pairs[2:])
    (gradient,) = torch.autograd.grad(pairs.negative_distance.sum(), teacher)
    assert bool(gradient.isnan().any())


def test_overflowing_squares_count_as_non_finite_without_normalization() -> None:
    teacher, student = make_batch("random", 9, 4)
    pairs = batch_hard_mining(teacher * 1e25, student, normalize=False)
    assert pairs.positive_index.tolist() == [-1] * 9
    assert bool(pairs.positive_distance.isnan().all())


def test_clamped_distances_have_no_gradient() -> None:
    student = torch.eye(3, dtype=torch.float64).requires_grad_()
    pairs = batch_hard_mining(torch.eye(3, dtype=torch.float64), student, normalize=False)
    assert pairs.positive_distance.tolist() == pytest.approx([CLAMPED] * 3)
    (gradient,) = torch.autograd.grad(pairs.positive_distance.sum(), student)
    assert torch.equal(gradient, torch.zeros(3, 3, dtype=torch.float64))


BAD_INPUTS: list[tuple[Any, Any, type[Exception], str]] = [
    ([1.0], torch.ones(2, 2), TypeError, "teacher: expected a tensor, got list"),
    (torch.ones(2, 2), None, TypeError, "student: expected a tensor, got NoneType"),
    (torch.ones(2), torch.ones(2), ValueError, r"teacher: expected shape \(N, D\) with D > 0, got \(2,\)"),
    (torch.ones(2, 0), torch.ones(2, 0), ValueError, r"teacher: expected shape \(N, D\) with D > 0, got \(2, 0\)"),
    (torch.ones(2, 3), torch.ones(3, 3), ValueError, r"student: expected shape \(2, 3\) like teacher, got \(3, 3\)"),
    (
        torch.ones(2, 2, dtype=torch.int64),
        torch.ones(2, 2),
        TypeError,
        "teacher: expected dtype float16, bfloat16, float32 or float64, got torch.int64",
    ),
    (
        torch.ones(2, 2),
        torch.ones(2, 2, dtype=torch.float64),
        TypeError,
        "student: expected dtype torch.float32 like teacher, got torch.float64",
    ),
    (
        torch.ones(2, 2),
        torch.ones(2, 2, device="meta"),
        ValueError,
        "student: expected device cpu like teacher, got meta",
    ),
]


@pytest.mark.parametrize(("teacher", "student", "error", "message"), BAD_INPUTS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input_is_named(
    teacher: Any, student: Any, error: type[Exception], message: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "reference":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    with pytest.raises(error, match=f"^{message}$"):
        batch_hard_mining(teacher, student)


@pytest.mark.parametrize(
    ("teacher", "student", "error", "message"),
    [
        (torch.ones(2), torch.ones(2), ValueError, r"teacher: expected shape \(N, D\) with D > 0, got \[2\]"),
        (torch.ones(2, 0), torch.ones(2, 0), ValueError, r"teacher: expected shape \(N, D\) with D > 0, got \[2, 0\]"),
        (
            torch.ones(2, 3),
            torch.ones(3, 3),
            ValueError,
            r"student: expected shape \[2, 3\] like teacher, got \[3, 3\]",
        ),
        (torch.ones(2, 2).int(), torch.ones(2, 2).int(), TypeError, "teacher: expected dtype float16, .*, got Int"),
        (
            torch.ones(2, 2),
            torch.ones(2, 2).double(),
            TypeError,
            "student: expected dtype Float like teacher, got Double",
        ),
    ],
)
def test_calls_around_the_python_function_are_checked_too(
    teacher: Tensor, student: Tensor, error: type[Exception], message: str
) -> None:
    for op in (torch.ops.deepclust_ext.batch_hard_mining, torch.ops.deepclust_ext.fused_hsd_loss):
        with pytest.raises(error, match=message):
            op(teacher, student)


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_of_anchors_has_the_pairs_that_it_has_among_all(kind: str, backend: str) -> None:
    teacher, student = make_batch(kind, 257, 20)
    whole, part = (
        batch_hard_mining(teacher, student),
        batch_hard_mining(teacher, student, first_row=70, num_rows=101),
    )
    for got, expected in zip(part, whole, strict=True):
        if backend == "native":
            assert torch.equal(got, expected[70:171])
        else:
            torch.testing.assert_close(got, expected[70:171])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads its own copies
def test_a_range_is_followed_by_transforms_and_compilers() -> None:
    teacher, student = make_batch("random", 9, 4, torch.float64)

    def total(x: Tensor) -> Tensor:
        return batch_hard_mining(teacher, x, first_row=2, num_rows=3).positive_distance.square().sum()

    leaf = student.clone().requires_grad_()
    total(leaf).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(torch.func.grad(total)(student), leaf.grad)
    assert torch.autograd.gradcheck(total, (student.clone().requires_grad_(),))
    leaves = (teacher.clone().requires_grad_(), student.clone().requires_grad_())
    torch.library.opcheck(torch.ops.deepclust_ext.batch_hard_mining.default, (*leaves, True, 2, 3))


def test_a_range_of_rows_that_are_not_finite(backend: str) -> None:
    teacher, student = make_batch("random", 6, 3)
    student[0, 0] = torch.nan
    student.requires_grad_()
    pairs = batch_hard_mining(teacher, student, first_row=3, num_rows=2)
    assert pairs.positive_index.tolist() == [-1, -1]
    pairs.positive_distance.sum().backward()
    assert student.grad is not None
    assert bool(student.grad.isnan().any())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"first_row": 7}, ValueError, "first_row: expected 0 to 6, got 7"),
        ({"first_row": -1}, ValueError, "first_row: expected 0 to 6, got -1"),
        ({"first_row": 2, "num_rows": 5}, ValueError, "num_rows: expected 0 to 4, got 5"),
        ({"num_rows": 1.0}, TypeError, "num_rows: expected an integer, got 1.0"),
    ],
)
def test_a_range_outside_the_rows_is_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        batch_hard_mining(torch.ones(6, 2), torch.ones(6, 2), **options)
    if error is ValueError:
        arguments = (options.get("first_row", 0), options.get("num_rows"))
        with pytest.raises(error, match=message):
            torch.ops.deepclust_ext.batch_hard_mining(torch.ones(6, 2), torch.ones(6, 2), True, *arguments)


def test_meta_tensors_give_shapes() -> None:
    pairs = batch_hard_mining(torch.ones(6, 4, device="meta"), torch.ones(6, 4, device="meta"))
    assert isinstance(pairs, HardPairs)
    assert [tuple(result.shape) for result in pairs] == [(6,)] * 6


@pytest.mark.skipif(EMULATED, reason="the emulated device has one instruction set")
def test_instruction_sets_agree() -> None:
    script = (
        "import torch\n"
        "from tests.ops.test_batch_hard_mining import KINDS, make_batch\n"
        "for kind in KINDS:\n"
        "  for dtype in (torch.float32, torch.float64):\n"
        "    teacher, student = make_batch(kind, 300, 70, dtype)\n"
        "    student.requires_grad_()\n"
        "    pairs = deepclust_ext.batch_hard_mining(teacher, student)\n"
        "    loss = deepclust_ext.fused_hsd_loss(teacher, student, reduction='none')\n"
        "    loss.sum().backward()\n"
        "    print(*(float(x).hex() for y in (*pairs, loss, student.grad[::9]) for x in y.flatten()))\n"
    )
    # Without fused multiply-adds only to rounding.
    for ours, other in zip(*results_by_instruction_set(script), strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(other), rtol=1e-4, atol=1e-6)
