"""The learning rate's course, against values computed by hand."""

from pathlib import Path
from typing import Any

import pytest

from deepclust_ext.training import LearningRate, Phase
from deepclust_ext.training.trainer import Trainer
from tests.training.runs import STEPS, config_of, make_trainer


def test_warmup_cosine_of_hadis() -> None:
    rate = LearningRate("warmup_cosine", warmup=50, horizon=1000)
    by_hand = {
        0.0: 0.0,
        12.5: 0.25,
        49.0: 0.98,
        50.0: 1.0,
        300.0: 0.8535533905932737,  # (1 + cos(pi / 4)) / 2
        550.0: 0.5,
        1000.0: 0.006155829702431115,  # (1 + cos(0.95 pi)) / 2: where the authors' run of 1000 epochs ends
        1050.0: 0.0,
        2000.0: 0.0,
    }
    assert {epoch: rate.factor(epoch, 1000) for epoch in by_hand} == pytest.approx(by_hand, abs=1e-12)


def test_floor_and_a_horizon_that_the_run_gives() -> None:
    rate = LearningRate("warmup_cosine", warmup=2, floor=0.1)
    by_hand = {1.0: 0.5, 2.0: 1.0, 4.0: 0.8681980515339464, 6.0: 0.55, 10.0: 0.1, 11.0: 0.1}  # 0.1 + 0.9 (2 + 2^.5) / 4
    assert {epoch: rate.factor(epoch, 10) for epoch in by_hand} == pytest.approx(by_hand)
    assert LearningRate("warmup_cosine", warmup=5).factor(1.0, 2) == pytest.approx(
        0.2
    )  # a run shorter than its warm-up
    assert LearningRate("warmup_cosine", warmup=2).factor(2.0, 2) == 1.0


def test_constant() -> None:
    assert [LearningRate().factor(epoch, 10) for epoch in (0.0, 3.7, 10.0)] == [1.0] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cosine"}, "learning_rate.name: expected one of constant, warmup_cosine, got 'cosine'"),
        ({"warmup": 5.0}, "learning_rate: expected no warmup, floor or horizon for 'constant'"),
        (
            {"name": "warmup_cosine", "warmup": -1.0},
            "learning_rate.warmup: expected a finite number .*, got -1.0",
        ),
        ({"name": "warmup_cosine", "floor": 2.0}, r"learning_rate.floor: expected a number in \[0, 1\], got 2.0"),
        ({"name": "warmup_cosine", "horizon": 0.0}, "learning_rate.horizon: expected a finite number above 0, got 0.0"),
    ],
)
def test_errors_name_the_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearningRate(**settings)


def test_rate_momentum_and_epoch_go_by_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = (Phase("warmup", 1, {"images": "warmup"}), Phase("main", 1, pseudo_labels="once"))
    config = config_of(phases=phases, learning_rate=LearningRate("warmup_cosine", warmup=1, horizon=2))
    trainer = make_trainer(tmp_path, config=config)
    rates, progress, epochs = [], [], []
    after_step, training_step = trainer.method.after_step, trainer.method.training_step

    def spy_after(share: float) -> None:
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        progress.append(share)
        after_step(share)

    def spy_step(*inputs: Any, **options: Any) -> Any:
        epochs.append(options["epoch"])
        return training_step(*inputs, **options)

    monkeypatch.setattr(trainer.method, "after_step", spy_after)
    monkeypatch.setattr(trainer.method, "training_step", spy_step)
    trainer.fit()
    assert STEPS == 3
    assert epochs == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])
    assert progress == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    # (1 + cos(pi / 6)) / 2 and (1 + cos(pi / 3)) / 2; the peak is 0.05 * 16 / 256, and ten times that of the predictor.
    factors = [0, 1 / 3, 2 / 3, 1, 0.9330127018922193, 0.75]
    assert [rate for rate, _ in rates] == pytest.approx([0.003125 * factor for factor in factors])
    assert [rate for _, rate in rates] == pytest.approx([0.03125 * factor for factor in factors])


def test_phases_of_unequal_steps_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Trainer = make_trainer(tmp_path, method="sacc")
    seen: list[tuple[float, float]] = []
    monkeypatch.setattr(trainer.method, "after_step", lambda share: seen.append((share, len(seen))))
    trainer.fit()
    # Two epochs of 3 steps, three of 3 + 2.
    assert [share for share, _ in seen] == pytest.approx([step / 21 for step in range(21)])
