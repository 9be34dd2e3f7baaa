"""The benchmark of pair_information: its rivals give what ours does, and its yardstick is what the floor counts."""

import dataclasses

import pytest
import torch

from benchmarks.floors import CARDS, FMA, LAUNCH_SECONDS, Card
from benchmarks.floors import pairs as floors
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


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_pairs_are_not_predicted_to_beat_their_floors(card: Card) -> None:
    for rows, clusters, dims, want_rows in floors.CUDA_PAIRS:
        seconds, limit = floors.predict_information(rows, clusters, dims, want_rows, card)
        assert limit in ("lanes", "shared", "L2")
        for dtype in floors.ELEMENT_BYTES:
            work = floors.information_work(rows, dims, dtype, clusters=clusters, want_rows=want_rows)
            assert seconds > work.seconds(card)
            teacher = floors.statistics_work(rows, dims, dtype, clusters=clusters)
            assert floors.predict_statistics(rows, clusters, dims, card) > teacher.seconds(card)


def test_blocks_of_pairs_are_cut_as_the_kernel_cuts_them() -> None:
    card = CARDS["NVIDIA H200"]
    assert floors.blocks_of_rows(2048, 1000, card) == [2048]
    assert floors.blocks_of_rows(8192, 1000, card) == [2162, 2162, 2162, 1706]
    assert floors.blocks_of_rows(4, 10**9, card) == [2, 2]


def test_work_and_launches_of_a_small_case() -> None:
    card = CARDS["NVIDIA H200"]
    for want_rows, written in ((False, 64 * 32), (True, (64 + 128) * 32)):
        work = floors.information_work(128, 32, "bfloat16", clusters=64, want_rows=want_rows)
        assert dict(work.flops) == {FMA: 2 * (3 + want_rows) * 128 * 64 * 32}
        assert work.bytes == 2 * (2 * (128 + 64) * 32 + 64 + 64) + 4 * (1 + written)
        seconds, _ = floors.predict_information(128, 64, 32, want_rows, card)
        launches = (7 + want_rows) * LAUNCH_SECONDS  # nothing is cut in parts
        assert launches < seconds < launches + 3 * LAUNCH_SECONDS
    assert floors.statistics_work(128, 32, "float32", clusters=64).bytes == 4 * ((128 + 64) * 32 + 64 + 64 + 1)
    assert 7 * LAUNCH_SECONDS < floors.predict_statistics(128, 64, 32, card) < 10 * LAUNCH_SECONDS
    whole, _ = floors.predict_product(64, 64, 4096, card)
    in_parts, _ = floors.predict_product(64, 64, 4096, card, in_parts=True)
    assert in_parts < whole / 5  # sixteen blocks instead of one
