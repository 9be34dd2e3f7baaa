"""Ops over ranks against the ops themselves: the same arguments, and the same errors for what does not fit."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import deepclust_ext
from deepclust_ext import distributed
from tests.distributed.pool import Pool

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"
#: Arguments of an op that its twin does not take; the page names them.
LEFT_OUT = {"sinkhorn_knopp": ["out"], "batch_hard_mining": ["first_row", "num_rows"]}
TWINS = [name for name in distributed.__all__ if hasattr(deepclust_ext, name)]

ROWS, FLAT = torch.randn(3, 4), torch.ones(3)
WRONG_ROWS = [ROWS.int(), ROWS[0], ROWS[:, :0], [1.0], ROWS.to_sparse(), ROWS.to("meta")]
WRONG_NUMBERS = [0, -1, float("nan"), True, "1", None]
WRONG_TENSORS = [torch.ones(1), torch.tensor(1), torch.tensor(-1.0), torch.tensor(0.5, device="meta")]
WRONG_TEMPERATURES = [*WRONG_NUMBERS, *WRONG_TENSORS]
#: For every op the tensors of a right call, and for every argument what it refuses.
CASES: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "fused_contrastive_loss": (
        {"z_a": ROWS, "z_b": ROWS},
        {
            "z_a": WRONG_ROWS,
            "z_b": [*WRONG_ROWS, ROWS[:2], ROWS.double()],
            "temperature": WRONG_TEMPERATURES,
            "hardness": [-1, None],
            "debias": [1, -1, None],
            "class_a": [ROWS, ROWS.int()],
            "class_b": [ROWS],
            "class_temperature": WRONG_NUMBERS,
            "queue": [ROWS[:, :2], ROWS.double(), "queue"],
            "class_queue": [ROWS],
            "normalize": [None, 1],
            "reduction": ["no", None],
        },
    ),
    "fused_hsd_loss": (
        {"teacher": ROWS, "student": ROWS},
        {
            "teacher": WRONG_ROWS,
            "student": [*WRONG_ROWS, ROWS[:2], ROWS.double()],
            "temperature": WRONG_TEMPERATURES,
            "normalize": [None, 1],
            "reduction": ["no", None],
            "return_stats": [None, 1],
        },
    ),
    "batch_hard_mining": (
        {"teacher": ROWS, "student": ROWS},
        {"teacher": WRONG_ROWS, "student": [*WRONG_ROWS, ROWS[:2], ROWS.double()], "normalize": [None, 1]},
    ),
    "sinkhorn_knopp": (
        {"scores": ROWS},
        {
            "scores": [ROWS.int(), FLAT, [1.0], ROWS.to_sparse()],
            "epsilon": WRONG_NUMBERS,
            "num_iters": [0, 1.5, True, None],
            "sample_marginals": [FLAT[:2], FLAT.int(), [1.0], FLAT.to("meta")],
            "cluster_marginals": [FLAT[:2], torch.ones(4).int(), [1.0]],
            "tolerance": [-1, True, "1"],
            "differentiable": [None, 1],
            "return_num_iters": [None, 1],
        },
    ),
    "nearest_neighbors": (
        {"query": ROWS, "bank": ROWS, "k": 2},
        {
            "query": WRONG_ROWS,
            "bank": [*WRONG_ROWS, ROWS[:, :2], ROWS.double()],
            "k": [0, 257, True, 1.5, None],
            "exclude": [FLAT, FLAT[:2].long(), [1], torch.tensor([0, -2, 1]), torch.tensor([0, 99, 1])],
            "valid": [FLAT, FLAT[:2].bool(), [True]],
        },
    ),
}


@pytest.mark.parametrize("op", TWINS)
def test_arguments_are_those_of_the_op(op: str) -> None:
    ours = dict(inspect.signature(getattr(distributed, op)).parameters)
    assert ours.pop("process_group").default is None
    parameters = inspect.signature(getattr(deepclust_ext, op)).parameters
    assert [name for name in parameters if name not in ours] == LEFT_OUT.get(op, [])
    for name, parameter in ours.items():
        assert (parameter.default, parameter.kind) == (parameters[name].default, parameters[name].kind), name
    page = " ".join(PAGE.read_text().split())
    assert all(f"`{name}`" in page for name in [op, *LEFT_OUT.get(op, [])])


def error_of(function: Any, arguments: dict[str, Any]) -> tuple[str, str] | None:
    try:
        function(**arguments)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def errors_over_ranks(group: Any, op: str) -> list[tuple[str, str] | None]:
    right, wrong = CASES[op]
    function = getattr(distributed, op)
    return [
        error_of(function, right | {name: value, "process_group": group})
        for name, values in wrong.items()
        for value in values
    ]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("op", TWINS)
def test_errors_are_those_of_the_op(pool: Pool, op: str, ranks: int) -> None:
    right, wrong = CASES[op]
    assert {*wrong} == {*inspect.signature(getattr(distributed, op)).parameters} - {"process_group"}
    calls = [(name, value) for name, values in wrong.items() for value in values]
    expected = [error_of(getattr(deepclust_ext, op), right | {name: value}) for name, value in calls]
    for answer in pool.run(errors_over_ranks, op, ranks=ranks):
        for (name, value), ours, theirs in zip(calls, answer, expected, strict=True):
            assert theirs is not None, (name, value)
            assert ours is not None, (name, value)
            rows = "rows of bank, 0 to "  # which are those of all ranks
            assert (ours[0], ours[1].split(rows)[0]) == (theirs[0], theirs[1].split(rows)[0]), (name, value)


def test_an_index_behind_the_rows_of_all_ranks_is_refused_on_all(pool: Pool) -> None:
    for error in pool.run(excluding, 5, ranks=2):
        assert error is None
    for error in pool.run(excluding, 6, ranks=2):
        assert error == ("ValueError", "exclude: expected rows of bank, 0 to 5, or -1 for none, got 6")


def excluding(group: Any, index: int) -> tuple[str, str] | None:
    first = torch.distributed.get_rank(group) == 0
    arguments = {"query": ROWS, "bank": ROWS, "k": 2, "exclude": torch.tensor([0, -1, index if first else 0])}
    return error_of(distributed.nearest_neighbors, arguments | {"process_group": group})
