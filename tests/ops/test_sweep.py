"""Mining and HSD loss over many sizes, types and kinds of data: every tile edge, and every way through the kernels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deepclust_ext import HardPairs, batch_hard_mining, fused_hsd_loss, reference
from tests.helpers import DEVICES, assert_error_budget, same_bits

# Around the borders of row blocks (64, 128), column tiles (64), quads (4) and stages (16, 32 and 64 features).
SIZES = [(1, 1), (2, 33), (5, 64), (63, 3), (64, 16), (65, 130), (129, 31), (200, 65)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distances(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Return DT^2 and D^2, (N, N), by direct differences in float64 of the rows as the kernel sees them."""
    rows, others = teacher.double().cpu(), student.double().cpu()
    square = [(rows[:, None] - other[None]).square().sum(2).clamp(min=1e-12) for other in (rows, others)]
    return square[0], square[1]


def assert_hardest(pairs: HardPairs, teacher: Tensor, student: Tensor, rounding: float) -> None:
    """Require that the pairs of un-normalized rows are the hardest, but for distances equal to rounding."""
    among, across = distances(teacher, student)
    own = across.diagonal()[:, None]
    band = rounding * (own + among)
    surely_negative, surely_positive = among > own + band, among <= own - band
    surely_positive.fill_diagonal_(True)
    infinity = float("inf")
    nearest = across.masked_fill(~surely_negative, infinity).amin(1)
    farthest = across.masked_fill(~surely_positive, -infinity).amax(1)
    anchors = torch.arange(len(teacher))
    positive, negative = pairs.positive_index.cpu(), pairs.negative_index.cpu()
    assert bool((positive >= 0).all())
    assert not bool(surely_negative[anchors, positive].any())
    assert bool((across[anchors, positive] >= farthest * (1 - rounding)).all())
    found = negative >= 0
    assert bool((found | (nearest == infinity)).all())
    assert not bool(surely_positive[anchors, negative][found].any())
    assert bool((across[anchors, negative] <= nearest * (1 + rounding))[found].all())
    ours = torch.stack(list(pairs[2:])).double().cpu()
    exact = [across[anchors, positive], across[anchors, negative], among[anchors, positive], among[anchors, negative]]
    for mine, square, present in zip(ours, exact, (found | True, found, found | True, found), strict=True):
        expected = square.sqrt().masked_fill(~present, 0)
        torch.testing.assert_close(mine, expected, rtol=2 * rounding, atol=1e-3 * rounding)


def rounding_of(dtype: torch.dtype) -> float:
    return 1e-11 if dtype == torch.float64 else max(1e-5, torch.finfo(dtype).eps)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "depth"), SIZES)
def test_hardest_pairs(count: int, depth: int, dtype: torch.dtype, device: str) -> None:
    teacher, student = (normal(count, depth, seed=seed).to(dtype).to(device) for seed in (1, 2))
    assert_hardest(batch_hard_mining(teacher, student, normalize=False), teacher, student, rounding_of(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "first", "rows"), [(5, 0, 2), (65, 64, 1), (65, 3, 0), (200, 37, 130)])
def test_a_range_of_anchors_has_the_pairs_and_gradients_that_it_has_among_all(
    count: int, first: int, rows: int, dtype: torch.dtype, device: str
) -> None:
    """To the bit."""
    features = [normal(count, 33, seed=seed).to(dtype).to(device) for seed in (30, 31)]
    weight = normal(4, rows, seed=32).to(dtype).to(device)

    def run(first_row: int, num_rows: int, part: slice) -> list[Tensor]:
        leaves = [feature.clone().requires_grad_() for feature in features]
        pairs = [x[part] for x in batch_hard_mining(*leaves, first_row=first_row, num_rows=num_rows)]
        (torch.stack(pairs[2:]) * weight).sum().backward()
        return [x.detach() for x in pairs] + [leaf.grad for leaf in leaves if leaf.grad is not None]

    got, expected = run(first, rows, slice(None)), run(0, count, slice(first, first + rows))
    assert len(got) == 8
    for mine, other in zip(got, expected, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "depth"), SIZES[2:])
def test_loss_and_gradients(count: int, depth: int, dtype: torch.dtype, device: str) -> None:
    features = [normal(count, depth, seed=seed).to(dtype).to(device) for seed in (3, 4)]

    def run(function: Callable[..., Tensor | tuple[Tensor, object]], wide: bool) -> list[Tensor]:
        leaves = [(feature.double() if wide else feature.clone()).requires_grad_() for feature in features]
        loss = function(*leaves)
        assert isinstance(loss, Tensor)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    results = run(fused_hsd_loss, False), run(reference.fused_hsd_loss, False), run(reference.fused_hsd_loss, True)
    for name, ours, naive, truth in zip(("loss", "teacher", "student"), *results, strict=True):
        assert_error_budget(ours, naive, truth, name)


def near_ties(kind: str) -> tuple[Tensor, Tensor]:
    """Batches in which many columns are equally far to rounding, so that lists of candidates overflow."""
    if kind == "collapsed":
        return 1 + 1e-4 * normal(100, 20, seed=5), 1 + 1e-4 * normal(100, 20, seed=6)
    if kind == "equal rows":
        return normal(1, 20, seed=7).expand(100, -1).clone(), normal(100, 20, seed=8)
    if kind == "scattered":  # near ties in columns without pattern, so that lanes list them unevenly
        far = torch.rand(300, 1, generator=torch.Generator().manual_seed(16), dtype=torch.float64) < 0.6
        far[:64, 0] = torch.arange(64) % 8 >= 6
        teacher, student = 1 + 1e-4 * normal(300, 20, seed=17), 1 + 1e-4 * normal(300, 20, seed=18)
        return teacher + far * normal(300, 20, seed=19), student + far * normal(300, 20, seed=20)
    if kind == "equidistant":  # negatives for certain, but products of such large rows do not tell which is the nearest
        return 220 + 1.6 * normal(150, 20, seed=21), 220 + 0.01 * normal(150, 20, seed=22)
    if kind == "offset":
        return 100 + normal(100, 20, seed=9), 100 + normal(100, 20, seed=10)
    if kind == "improving":  # every student nearer than the one before: the list of nearest columns is rewritten
        step = torch.linspace(3, 0, 100, dtype=torch.float64)[:, None]
        return torch.eye(20, dtype=torch.float64).repeat(5, 1), torch.eye(20, dtype=torch.float64)[0] * (1 + step)
    teacher = normal(10, 20, seed=11).repeat(10, 1)  # every row ten times, in teacher and student
    if kind == "repeated far off":  # products do not tell which columns are exactly as far as the threshold
        teacher = teacher + 30
    return teacher, teacher.roll(3, 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "kind",
    ["collapsed", "equal rows", "scattered", "equidistant", "offset", "improving", "repeated", "repeated far off"],
)
def test_near_ties(kind: str, dtype: torch.dtype, device: str) -> None:
    teacher, student = (features.to(dtype).to(device) for features in near_ties(kind))
    pairs = batch_hard_mining(teacher, student, normalize=False)
    assert_hardest(pairs, teacher, student, rounding_of(dtype))
    if kind == "repeated":  # exact ties: the lowest index, and DT equal to D is not a negative
        among, across = distances(teacher, student)
        negative = among > across.diagonal()[:, None] * (1 + 1e-6)
        assert torch.equal(pairs.negative_index.cpu(), across.masked_fill(~negative, float("inf")).argmin(1))


@pytest.mark.parametrize("device", DEVICES)
def test_precision_of_products_does_not_show(device: str) -> None:
    """The same results to the bit, whatever torch may use for float32 products."""
    kinds = [near_ties(kind) for kind in ("offset", "equidistant")]
    kinds.append((normal(150, 40, seed=14), normal(150, 40, seed=15)))
    setting = torch.backends.cuda.matmul.fp32_precision
    try:
        for teacher, student in kinds:
            results = []
            for precision in ("ieee", "tf32"):
                torch.backends.cuda.matmul.fp32_precision = precision
                leaf = student.float().to(device).requires_grad_()
                loss = fused_hsd_loss(teacher.float().to(device), leaf, reduction="none")
                pairs = batch_hard_mining(teacher.float().to(device), leaf)
                results.append([*pairs, loss, *torch.autograd.grad(loss.sum(), leaf)])
            assert all(map(same_bits, *results))
    finally:
        torch.backends.cuda.matmul.fp32_precision = setting


@pytest.mark.parametrize("device", DEVICES)
def test_many_blocks_of_rows(device: str) -> None:
    """As many rows as fill a small device with large blocks, a ragged end, and two hubs for the gradient."""
    teacher, student = normal(700, 24, seed=12), normal(700, 24, seed=13)
    student[:, 0] += 10
    teacher[300], student[300] = 5 * teacher[300], 0  # everybody's nearest negative
    teacher[301], student[301] = 0.01 * teacher[301], 10 * student[301]  # everybody's farthest positive
    teacher, student = teacher.float().to(device), student.float().to(device)
    pairs = batch_hard_mining(teacher, student, normalize=False)
    assert_hardest(pairs, teacher, student, rounding_of(torch.float32))
    assert int((pairs.negative_index == 300).sum()) > 600
    assert int((pairs.positive_index == 301).sum()) > 600
    leaves = [teacher.clone().requires_grad_(), student.clone().requires_grad_()]
    exact = [teacher.double().requires_grad_(), student.double().requires_grad_()]
    gradients = torch.autograd.grad(fused_hsd_loss(*leaves, normalize=False), leaves)
    truth = reference.fused_hsd_loss(*exact, normalize=False)
    assert isinstance(truth, Tensor)
    for ours, expected in zip(gradients, torch.autograd.grad(truth, exact), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-6)
