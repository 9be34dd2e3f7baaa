"""Numbers that change between the calls of a compiled function: eager's values, and at most two or three graphs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from deepclust_ext import (
    augment_views,
    batch_hard_mining,
    diffused_neighbor_gather,
    fused_contrastive_loss,
    fused_hsd_loss,
    nearest_neighbors,
    sinkhorn_knopp,
)
from deepclust_ext.data import STEPS
from deepclust_ext.losses import ClusterContrastiveLoss, ContrastiveLoss, HSDLoss, PrototypeLoss, SinkhornKnopp
from deepclust_ext.ops import kmeans_update

pytestmark = pytest.mark.any_kernels

B = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
VALUES = [0.5 - 0.03 * step for step in range(14)]

# Of integers.
ROWS = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 7
BLUR = torch.tensor([[STEPS.index("blur")]])
WHOLE_VALUES = [*range(5, 13), 4, 3, 2, 1]

Loss = Callable[[Tensor, float], Tensor]


def classes(x: Tensor) -> dict[str, Any]:
    return {"class_a": x.softmax(1), "class_b": B.softmax(1)}


# A number that is also a factor of a tensor is what went wrong in silence.
CASES: dict[str, Loss] = {
    "temperature": lambda x, t: fused_contrastive_loss(x, B, temperature=2 * t) * t,
    "hardness": lambda x, t: fused_contrastive_loss(x, B, hardness=2 * t) * t,
    "debias": lambda x, t: fused_contrastive_loss(x, B, debias=t) * t,
    "class_temperature": lambda x, t: fused_contrastive_loss(x, B, **classes(x), class_temperature=t) * t,
    "two numbers": lambda x, t: fused_contrastive_loss(x, B, temperature=t, hardness=3 * t) * t,
    "constant queue": lambda x, t: fused_contrastive_loss(x, B, queue=B.flip(0), temperature=2 * t) * t,
    "hsd": lambda x, t: fused_hsd_loss(B, x, temperature=2 * t) * t,
    "epsilon": lambda x, t: sinkhorn_knopp(x, epsilon=t, differentiable=True).square().sum() * t,
    "tolerance": lambda x, t: (
        sinkhorn_knopp(x, epsilon=0.5, tolerance=t, num_iters=9, differentiable=True).square().sum() * t
    ),
    "noise": lambda x, t: diffused_neighbor_gather(x, B, noise_std=t, num_neighbors=0)[0].square().sum() * t,
    "walk": lambda x, t: (
        diffused_neighbor_gather(x, B + x, noise_std=t, temperature=2 * t, num_neighbors=3)[0].square().sum() * t
    ),
    "schedule": lambda x, t: fused_contrastive_loss(x, B, temperature=0.1 + 0.4 * (1 - t / 100)) * t,
}


def compare(loss: Loss, numbers: list[float] | range, backend: str) -> int:
    """Require eager's values and gradients for every number, and return how many graphs were made."""
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend(backend)
    compiled = torch.compile(loss, fullgraph=True, backend=graphs)
    for number in numbers:
        results = []
        for function in (compiled, loss):
            torch.manual_seed(1)
            leaf = (B.flip(0) + 0.1).requires_grad_()
            value = function(leaf, number)
            results.append((value.detach(), *torch.autograd.grad(value, leaf)))
        torch.testing.assert_close(*results)
    return int(graphs.frame_count)


@pytest.mark.parametrize("case", CASES)
def test_at_most_two_graphs(case: str) -> None:
    assert compare(CASES[case], VALUES, "aot_eager") == 2


@pytest.mark.filterwarnings("ignore:a batch of 8")
@pytest.mark.parametrize(
    ("module", "name", "inputs"),
    [
        (ContrastiveLoss(), "temperature", (B, B.flip(0))),
        (ClusterContrastiveLoss(), "temperature", (B.softmax(1), B.flip(0).softmax(1))),
        (HSDLoss(), "temperature", (B, B.flip(0))),
        (PrototypeLoss(), "temperature", (B, B.flip(0), torch.arange(8) % 3, 3)),
        (SinkhornKnopp(), "epsilon", (B,)),
    ],
)
def test_attributes_of_modules(module: nn.Module, name: str, inputs: tuple[Any, ...]) -> None:
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=graphs)
    for number in VALUES:
        setattr(module, name, number)
        torch.testing.assert_close(compiled(*inputs), module(*inputs))
    assert graphs.frame_count == 2


@pytest.mark.filterwarnings("ignore:a batch of 8")
@pytest.mark.parametrize(
    ("module", "name", "rest"),
    [
        (ContrastiveLoss(), "temperature", (B,)),
        (ClusterContrastiveLoss(), "temperature", (B.softmax(1),)),
        (HSDLoss(), "temperature", (B,)),
        (PrototypeLoss(), "temperature", (B, torch.arange(8) % 3, 3)),
        (SinkhornKnopp(differentiable=True), "epsilon", ()),
    ],
)
def test_attributes_that_are_set_within(module: nn.Module, name: str, rest: tuple[Any, ...]) -> None:
    def loss(x: Tensor, number: float) -> Tensor:
        setattr(module, name, number)
        value: Tensor = module(x.softmax(1), *rest)
        return value.square().sum()

    def plain(x: Tensor, number: float) -> Tensor:
        setattr(module, name, number)
        scores: Tensor = x @ B.T / getattr(module, name)
        return scores.logsumexp(1).sum()

    assert compare(loss, VALUES, "aot_eager") == compare(plain, VALUES, "aot_eager") == 2


@pytest.mark.parametrize("case", ["temperature", "hsd", "epsilon", "walk"])
def test_inductor(case: str) -> None:
    assert compare(CASES[case], VALUES[:4], "inductor") == 2


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_schedule_by_steps(backend: str) -> None:
    def loss(x: Tensor, step: float) -> Tensor:
        return fused_contrastive_loss(x, B, temperature=0.1 + 0.4 * (1 - step / 100))

    assert compare(loss, range(14), backend) <= 2


def test_integers_are_not_mixed_up() -> None:
    def loss(x: Tensor, step: float) -> Tensor:
        return sinkhorn_knopp(x, num_iters=int(2 * step + 1), differentiable=True).square().sum() * step

    compare(loss, range(1, 5), "inductor")


INTEGERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "k": lambda x, n: nearest_neighbors(x, ROWS, k=n)[0] + x[0, 0],
    "num_neighbors": lambda x, n: diffused_neighbor_gather(x, ROWS + x, num_neighbors=n)[0],
    "num_steps": lambda x, n: diffused_neighbor_gather(x, ROWS + x, num_steps=n, num_neighbors=2)[0],
    "num_samples": lambda x, n: diffused_neighbor_gather(x, ROWS + x, num_samples=n, normalize=True)[0],
    "num_samples, exclude": lambda x, n: diffused_neighbor_gather(
        x, ROWS + x, num_neighbors=n, num_steps=n, num_samples=n, exclude=torch.arange(16)
    )[0],
    "num_rows": lambda x, n: batch_hard_mining(x, ROWS, num_rows=n).positive_distance,
    "first_row": lambda x, n: batch_hard_mining(x, ROWS, first_row=n).negative_distance,
    "first_row, num_rows": lambda x, n: batch_hard_mining(x, ROWS, first_row=n, num_rows=1).positive_distance,
    "num_clusters": lambda x, n: kmeans_update(x, LABELS, n)[0] + x[0, 0],
    "num_iters": lambda x, n: sinkhorn_knopp(x, epsilon=0.5, num_iters=n, differentiable=True),
    "num_iters, constant": lambda x, n: sinkhorn_knopp(x, epsilon=0.5, num_iters=n) + x[0, 0],
    "num_iters, out": lambda x, n: (
        sinkhorn_knopp(x.detach(), epsilon=0.5, num_iters=n, out=torch.empty_like(x)) + x[0, 0]
    ),
    "size": lambda x, n: augment_views(x.detach().view(1, 1, 8, 8), size=n) + x[0, 0],
    "height": lambda x, n: augment_views(x.detach().view(1, 1, 8, 8), size=(n, 7)) + x[0, 0],
    "blur_kernel": lambda x, n: (
        augment_views(
            x.detach().view(1, 1, 8, 8), size=8, steps=BLUR, strengths=torch.ones(1, 1), blur_kernel=2 * n - 1
        )
        + x[0, 0]
    ),
    "prototypes": lambda x, n: PrototypeLoss()(x, ROWS, LABELS, n),
    "with a number": lambda x, n: diffused_neighbor_gather(
        x, ROWS + x, num_neighbors=n, num_samples=n, temperature=0.1 * n, noise_std=0.01 * n
    )[0],
}


def compare_integers(function: Callable[[Tensor, int], Tensor], values: list[int], backend: str) -> int:
    """Require eager's values and gradients, to the bit, for every integer, and return how many graphs were made."""
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, fullgraph=True, backend=graphs)
    for value in values:
        results = []
        for call in (compiled, function):
            torch.manual_seed(1)
            leaf = (ROWS.flip(0) + 0.1).requires_grad_()
            result = call(leaf, value)
            results.append((result.detach(), *torch.autograd.grad(result, leaf, torch.ones_like(result))))
        torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)
    return int(graphs.frame_count)


# The first value, then one graph for others, and one of its own for 1, as torch has it.
@pytest.mark.parametrize("case", INTEGERS)
def test_at_most_three_graphs_of_integers(case: str) -> None:
    assert compare_integers(INTEGERS[case], WHOLE_VALUES, "aot_eager") <= 3


def test_plain_torch_makes_as_many() -> None:
    assert compare_integers(lambda x, n: (x @ ROWS.T).topk(n).values, WHOLE_VALUES, "aot_eager") == 3


@pytest.mark.parametrize("case", ["k", "num_samples, exclude", "first_row", "num_clusters", "num_iters", "height"])
def test_integers_by_inductor(case: str) -> None:
    assert compare_integers(INTEGERS[case], WHOLE_VALUES[:4], "inductor") == 2


def test_integers_of_a_shape() -> None:
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")

    def neighbors(x: Tensor) -> Tensor:
        return nearest_neighbors(x, x, k=x.shape[0] // 2)[0]

    compiled = torch.compile(neighbors, fullgraph=True, backend=graphs)
    for count in range(4, 16):
        torch.testing.assert_close(compiled(ROWS[:count]), neighbors(ROWS[:count]), rtol=0, atol=0)
    assert graphs.frame_count == 2


def test_integers_out_of_range_raise_in_a_graph_for_others() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, n: nearest_neighbors(x, ROWS, k=n)[0], backend="aot_eager")
    for number in (5, 6, 7):
        compiled(ROWS, number)
    with pytest.raises(Exception, match="k: expected 1 to 256, got "):
        compiled(ROWS, 257)


def test_constants_stay_constants() -> None:
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    torch.compile(lambda x: fused_hsd_loss(B, x, temperature=0.3), backend=graphs, fullgraph=True)(B)
    called = [node.target for node in graphs.graphs[0].graph.nodes if node.op == "call_function"]
    assert torch.ops.deepclust_ext.fused_hsd_loss.default in called


def test_autocast() -> None:
    def loss(x: Tensor, t: float) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return fused_contrastive_loss(x.bfloat16(), B, temperature=t) * t

    assert compare(loss, VALUES[:4], "aot_eager") == 2


def test_learned_temperature() -> None:
    learned = nn.Parameter(torch.tensor(0.5))
    for number in (0.5, 0.3):
        with torch.no_grad():
            learned.fill_(number)
        compiled = torch.compile(
            lambda x: fused_contrastive_loss(x, B, temperature=learned, debias=0.1), fullgraph=True, backend="aot_eager"
        )
        (ours,) = torch.autograd.grad(compiled(B.flip(0)), learned)
        (eager,) = torch.autograd.grad(fused_contrastive_loss(B.flip(0), B, temperature=learned, debias=0.1), learned)
        torch.testing.assert_close(ours, eager)
