"""The benchmark of diffused_neighbor_gather: its rival draws other numbers, so its check has to catch faults."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.floors import BF16
from benchmarks.harness import Case, admit, load_op
from benchmarks.ops.diffused_neighbor_gather import check_composition, composition

OPTIONS: dict[str, Any] = {"num_neighbors": 10, "num_samples": 4}


def case_named(name: str) -> Case:
    (case,) = (case for case in load_op("diffused_neighbor_gather").CASES if case.name == name)
    return case


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(64, 32), torch.randn(500, 32)


def test_composition_passes_its_check(inputs: tuple[Tensor, Tensor]) -> None:
    assert check_composition(composition(*inputs, **OPTIONS), inputs, OPTIONS) is None
    walk = OPTIONS | {"num_steps": 3}
    assert check_composition(composition(*inputs, **walk), inputs, walk) is None
    alone: dict[str, Any] = {"num_neighbors": 0}
    assert check_composition(composition(inputs[0], inputs[0], **alone), (inputs[0], inputs[0]), alone) is None


def test_check_finds_what_is_wrong(inputs: tuple[Tensor, Tensor]) -> None:
    query, bank = inputs
    samples, indices = composition(query, bank, **OPTIONS)
    assert "noise" in str(check_composition((samples + 0.001 * torch.randn_like(samples), indices), inputs, OPTIONS))
    assert "noise" in str(check_composition((samples.roll(1, 0), indices), inputs, OPTIONS))

    def at(chosen: Tensor) -> tuple[Tensor, Tensor]:
        return bank[chosen] + 0.001 * torch.randn_like(samples), chosen

    assert "no neighbor" in str(check_composition(at((indices + 1) % len(bank)), inputs, OPTIONS))
    cosines = torch.cosine_similarity(query.unsqueeze(1), bank, dim=2)
    nearest = cosines.topk(10, dim=1).indices
    assert "cosines off" in str(check_composition(at(nearest[:, :1].expand(-1, 4)), inputs, OPTIONS))
    uniform = nearest.gather(1, torch.randint(10, (64, 4)))
    assert "cosines off" in str(check_composition(at(uniform), inputs, OPTIONS))
    drawn = check_composition(
        (query.unsqueeze(1) + 0.001 * torch.randn(64, 1, 32), indices), (query, query), {"num_neighbors": 0}
    )
    assert "indices" in str(drawn)


def test_ours_and_the_composition_are_admitted() -> None:
    case = dataclasses.replace(case_named("self-256x256"), skip={"compiled composition": "skipped: takes long"})
    fit, _ = admit(load_op("diffused_neighbor_gather"), case, case.inputs(torch.float32, "cpu"))
    assert {"ours", "composition", "reference"} <= set(fit)


def test_cases_for_cuda() -> None:
    op = load_op("diffused_neighbor_gather")
    cases = {case.name: case for case in op.CUDA_CASES}
    assert {name: case.checked_rows for name, case in cases.items()} == {
        "self-256x256": None,
        "self-65536x256": None,
        "bank100000-k50-256x128": None,
        "bank1000000-k50-1024x128": 134,
        "bank250000-k10-s8-4096x256": 536,
    }
    case = cases["bank100000-k50-256x128"]
    assert case.works is not None
    work = case.works["forward"](case.rows, case.dims, "bfloat16")
    search, gather = 2 * 128 * (256 + 100_000) + 256 * 50 * (2 + 8), 256 * (50 * (2 + 8) + 2 * 128 * 2 + 8)
    assert work.flops == {BF16: case.bind(op.YARDSTICK.flops)(*case.inputs(torch.float32, "cpu"))}
    assert work.bytes == search + gather
