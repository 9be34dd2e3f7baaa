"""A run that is asked to stop ends its step and goes on from there to the same bits; precision and compiling."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from deepclust_ext.data import RandomAffine
from deepclust_ext.training import Trainer
from deepclust_ext.training.files import CHECKPOINT_NAME, load_checkpoint
from deepclust_ext.training.stop import Stopped
from tests.training.runs import Scans, assert_same_run, config_of, make_trainer
from tests.training.test_checkpoint import STOPS


class Ask(nn.Module):
    """The view of a batch, which at one of its calls asks the run to stop."""

    def __init__(self, trainer: Trainer, calls: int) -> None:
        super().__init__()
        self.trainer, self.left, self.view = [trainer], calls, RandomAffine()

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        self.trainer[0].stop |= self.left == 0
        return self.view(images)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return repr(self.view)  # the run's settings are the same


def stop(out: Path, after: int, method: str, **options: Any) -> str:
    """Ask a run to stop in so many steps from its beginning, and return what it says."""
    trainer = make_trainer(out, method=method, **options)
    trainer.views = [*trainer.views[1:], Ask(trainer, after)]
    with pytest.raises(Stopped) as caught:
        trainer.fit()
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "epoch", "step", "workers"), [*((*stop, 0) for stop in STOPS), ("hadis", 1, 1, 1), ("sacc", 4, 4, 1)]
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path: Path, method: str, epoch: int, step: int, workers: int
) -> None:
    config = config_of(method, num_workers=workers)
    whole = make_trainer(tmp_path / "whole", method=method, config=config)
    lengths = [whole.steps_per_epoch(phase) for phase in whole.config.phases for _ in range(phase.epochs)]
    whole.fit()
    said = stop(tmp_path / "part", sum(lengths[:epoch]) + step, method, config=config)
    path = tmp_path / "part" / CHECKPOINT_NAME
    where = f"in epoch {epoch + 1} after step {step} of {lengths[epoch]}" if step else f"after epoch {epoch}"
    assert said == f"stopped {where}; {path} holds the run, and resume continues it"
    state = load_checkpoint(path)
    assert (len(state["history"]), state["epoch_so_far"]["steps"]) == (epoch, step)
    resumed = make_trainer(tmp_path / "part", method=method, config=config)
    torch.manual_seed(99)  # another process has other generators
    resumed.fit(resume=True)
    assert_same_run(whole, resumed)


def test_a_run_can_be_stopped_twice_in_one_epoch(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", method="sacc")
    whole.fit()
    stop(tmp_path / "part", 7, "sacc")
    second = make_trainer(tmp_path / "part", method="sacc")
    second.views = [*second.views[1:], Ask(second, 2)]
    with pytest.raises(Stopped, match="in epoch 3 after step 3 of 5"):
        second.fit(resume=True)
    resumed = make_trainer(tmp_path / "part", method="sacc")
    resumed.fit(resume=True)
    assert_same_run(whole, resumed)


class Noisy(Scans):
    """Images that are others at every reading."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index) + torch.rand(1, 8, 8) / 10


def test_where_images_change_the_epoch_under_way_is_ended_first(tmp_path: Path) -> None:
    data: Dataset[Any] = Noisy()
    said = stop(tmp_path, 2, "clc", data=data)
    assert "stopped after epoch 1;" in said


def test_nothing_stops_after_the_last_epoch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, method="clc")
    trainer.views = [*trainer.views[1:], Ask(trainer, 9)]
    assert len(trainer.fit()) == 3


def test_what_follows_an_epoch_joins_its_record(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, method="clc")
    history = trainer.fit(after_epoch=lambda record: {"twice": 2 * record["epoch"]})
    assert [record["twice"] for record in history] == [2, 4, 6]
    assert load_checkpoint(tmp_path / CHECKPOINT_NAME)["history"] == history


@pytest.mark.parametrize("method", ["hadis", "sacc", "clc"])
def test_steps_in_bfloat16_are_near_those_in_float32(tmp_path: Path, method: str) -> None:
    histories = {}
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(tmp_path / precision, method=method, config=config_of(method, precision=precision))
        histories[precision] = trainer.fit()
        assert {weight.dtype for weight in trainer.method.parameters()} == {torch.float32}
    first, second = histories["fp32"][0]["loss"], histories["bf16"][0]["loss"]
    assert first != second  # it did compute in another precision
    assert second == pytest.approx(first, rel=0.05)


def test_a_compiled_run_is_near_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_trainer(tmp_path / "plain", method="sacc")
    plain.fit()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    compiled = make_trainer(tmp_path / "compiled", method="sacc", config=config_of("sacc", compile=True))
    calls = []
    step = compiled._compiled_step
    assert step is not None
    compiled._compiled_step = lambda *args, **options: calls.append(1) or step(*args, **options)  # type: ignore[func-returns-value]
    compiled.fit()
    assert len(calls) == sum(map(len, [range(3)] * 2 + [range(5)] * 3))
    for ours, expected in zip(compiled.history, plain.history, strict=True):
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "precision: expected one of fp32, bf16, got 'fp16'"),
        ({"compile": 1}, "compile: expected True or False, got int"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        config_of(**changes)
