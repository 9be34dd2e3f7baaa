"""benchmarks.ranks: what it measures is checked first."""

import multiprocessing

import pytest
from torch import Tensor

from benchmarks import ranks
from benchmarks.memory import start_server


def twice(z_a: Tensor, z_b: Tensor) -> Tensor:
    return 2 * ranks.ours(z_a, z_b)


def test_right_results_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    # How long it takes says nothing here: ranks may be forks, which have torch already.
    server = start_server()
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: server)
    measured = ranks.measure("ours", 2, 24, 8, rounds=2)
    assert measured.seconds > 0
    assert measured.megabytes >= 0


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    own, whole = ranks.inputs_of(10, 4, 0, 1), ranks.inputs_of(10, 4, 1, 2)
    assert own[0][5:].equal(whole[0])
    assert ranks.fault_of(ranks.ours, 24, 8, 0, 1) == ""
    assert "loss off by 1, gradients by 1 of what one process has" in ranks.fault_of(twice, 24, 8, 0, 1)
