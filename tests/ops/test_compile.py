"""Numbers that change between the calls of a compiled function: eager's values, and at most two graphs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from deepclust_ext import (
    batch_hard_mining,
    diffused_neighbor_gather,
    fused_contrastive_loss,
    fused_hsd_loss,
    nearest_neighbors,
    sinkhorn_knopp,
)
from deepclust_ext.losses import ClusterContrastiveLoss, ContrastiveLoss, HSDLoss, PrototypeLoss, SinkhornKnopp

pytestmark = pytest.mark.any_kernels

B = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
VALUES = [0.5 - 0.03 * step for step in range(14)]

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
    "k": lambda x, n: nearest_neighbors(x, B, k=n)[0] * x.sum(),
    "num_neighbors": lambda x, n: diffused_neighbor_gather(x, B + x, num_neighbors=n)[0],
    "num_steps": lambda x, n: diffused_neighbor_gather(x, B + x, num_steps=n, num_neighbors=2)[0],
    "num_samples": lambda x, n: diffused_neighbor_gather(x, B + x, num_samples=n)[0],
    "num_rows": lambda x, n: batch_hard_mining(x, B, num_rows=n).positive_distance,
    "first_row": lambda x, n: batch_hard_mining(x, B, first_row=n, num_rows=1).positive_distance,
}


@pytest.mark.parametrize("case", INTEGERS)
def test_integers_are_those_of_the_call(case: str) -> None:
    compare(lambda x, n: INTEGERS[case](x, n).square().sum() * n, range(1, 5), "aot_eager")  # type: ignore[arg-type]


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
