"""The benchmark of pair_information: its rivals give what ours does, and its yardstick is what the floor counts."""

import dataclasses

import pytest
import torch

from benchmarks.floors.cpu import Floor, find_floors
from benchmarks.harness import Case, admit, cases_of, load_op


def pair_case(name: str) -> Case:
    (case,) = (case for case in cases_of(load_op("pair_information"), "cpu") if case.name == name)
    return dataclasses.replace(case, skip={"compiled plain formula": "skipped: slow to compile"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["frozen-k10-2048x384", "hidden-k1000-2048x256"])
def test_rivals_of_pair_information_pass_the_gate(name: str, dtype: torch.dtype) -> None:
    case = pair_case(name)
    fit, excluded = admit(load_op("pair_information"), case, case.inputs(dtype, "cpu", rows=128))
    assert set(fit) == {"ours", "plain formula", "reference"}, excluded


@pytest.mark.parametrize(("name", "products"), [("frozen-k10-2048x384", 3), ("hidden-k1000-2048x256", 4)])
def test_products_are_counted_alike(name: str, products: int) -> None:
    op, case = load_op("pair_information"), pair_case(name)
    inputs = case.inputs(torch.float32, "cpu")
    rows, weight = inputs[:2]
    flops = 2 * products * len(rows) * len(weight) * case.dims
    output = case.bind(op.PROVIDERS["ours"].load())(*inputs)
    assert case.bind(op.YARDSTICK.flops)(*inputs) == flops
    moved = sum(x.numel() for x in (*inputs, *output)) * 4
    assert find_floors(op, case, inputs, output, "float32") == {"forward": Floor(flops, moved)}
    for function in (case.bind(op.YARDSTICK.function), *case.beside.values()):
        function(*inputs)
