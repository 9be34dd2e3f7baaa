"""The benchmark of a step's memory, on small images and in this process."""

import re
from typing import Any

import pytest

from benchmarks import step_memory
from benchmarks.step_memory import Taken


class Sent:
    """Keeps what is sent."""

    def send(self, taken: Any) -> None:
        self.taken = Taken(*taken)


@pytest.mark.filterwarnings("ignore:a batch of 4")
def test_steps_of_all_kinds_have_one_loss(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(*arguments: Any) -> Taken:
        sent: Any = Sent()
        step_memory.send_step(sent, *arguments)
        return sent.taken  # type: ignore[no-any-return]

    monkeypatch.setattr(step_memory, "measure", measure)
    assert step_memory.main(["--images", "4", "--size", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [re.findall(r"\w+", line)[:2] for line in lines] == [
        ["fp32", "no"],
        ["fp32", "yes"],
        ["bf16", "no"],
        ["bf16", "yes"],
    ]
    assert len({line.split("|")[4] for line in lines}) == 2  # one loss for each precision


@pytest.mark.parametrize(("loss", "status"), [(2.0, 0), (2.1, 1), (float("nan"), 1)])
def test_another_loss_is_a_fault(loss: float, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_memory, "measure", lambda precision, *_: Taken(1.0, loss if precision == "bf16" else 2.0))
    assert step_memory.main([]) == status
