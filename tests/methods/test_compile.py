"""How many graphs torch.compile makes of a method's training step while its numbers change, and that they are right."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.methods.methodsamples import METHODS, NUM_CLUSTERS, make_views

# Graphs of a step, and of what follows it: the number of an argument that changes counts twice.
CASES: list[tuple[str, dict[str, Any], int, int]] = [
    ("hadis", {}, 1, 1),
    ("hadis", {"momentum_rises": True}, 1, 2),
    ("hadis", {"bank_size": 40, "num_neighbors": 3}, 1, 1),
    ("boost", {}, 1, 1),
    ("pici", {}, 1, 0),
    ("sacc", {}, 1, 0),
    ("clc", {}, 2, 1),
]
#: What a function reaches as users' scripts do: torch.compile treats globals in ways of its own.
GLOBALS: dict[str, Any] = {}


def global_training_step(*args: Any, **options: Any) -> Any:
    return GLOBALS["method"].training_step(*args, **options)


def global_after_step(*args: Any) -> None:
    GLOBALS["method"].after_step(*args)


# As globals those of which a number changes, and one of which none does.
@pytest.mark.parametrize(
    ("name", "options", "of_step", "of_after_step", "is_global"),
    [(*case, False) for case in CASES]
    + [(*case, True) for case in CASES if case[0] in ("hadis", "clc") and "bank_size" not in case[1]],
)
def test_graphs_of_fourteen_steps(
    name: str, options: dict[str, Any], of_step: int, of_after_step: int, is_global: bool
) -> None:
    torch._dynamo.reset()
    counts = CompileCounterWithBackend("eager"), CompileCounterWithBackend("eager")
    compiled, plain = METHODS[name].method(**options), METHODS[name].method(**options)
    GLOBALS["method"] = compiled
    calls = (global_training_step, global_after_step) if is_global else (compiled.training_step, compiled.after_step)
    steps = (
        (
            compiled,
            compiled.make_optimizer(16),
            torch.compile(calls[0], backend=counts[0], fullgraph=True),
            torch.compile(calls[1], backend=counts[1], fullgraph=True),
        ),
        (plain, plain.make_optimizer(16), plain.training_step, plain.after_step),
    )
    labels, index = torch.arange(16) % NUM_CLUSTERS, torch.arange(16)
    for step in range(14):
        views = [view + step for view in make_views(METHODS[name].num_views, 16)]
        losses = []
        for _, optimizer, training_step, after_step in steps:
            torch.manual_seed(step)
            loss, _ = training_step(views, labels, index, epoch=step / 3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after_step(step / 14)
            losses.append(loss.detach())
        torch.testing.assert_close(*losses)
    assert [count.frame_count for count in counts] == [of_step, of_after_step]
    for ours, expected in zip(compiled.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, expected)
