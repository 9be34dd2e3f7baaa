"""The benchmark of training steps: parts add up, providers agree, and what is wrong or missing is named."""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks import clock, other_checkout, plain_pici, steps
from benchmarks.report import ROOT, Row, Setting, current_commit
from benchmarks.step_cases import CASES, STAGED, digits_trainer, photo_trainer
from deepclust_ext import _extension, fused_hsd_loss, reference
from deepclust_ext.methods import ClusteringMethod, OptimizerSettings
from deepclust_ext.training import Phase, TrainConfig, Trainer
from tests.methods.methodsamples import METHODS

SETTING = Setting("m", "AVX2", "cpu", 1, "2", "c", "float32")
BATCH = 16


def small_trainer(name: str) -> Trainer:
    """Return a trainer on random images, the same at every call."""
    sample = METHODS[name]
    method = sample.method()
    images = TensorDataset(torch.rand(3 * BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    views = [nn.Dropout(0.1)] * sample.num_views
    phase = Phase("main", 9, pseudo_labels=1 if method.labelled_terms else "never")
    return Trainer(method, images, views, TrainConfig([phase], batch_size=BATCH), Path("unused"))


def measure(name: str) -> list[Row]:
    return steps.measure(SETTING, 0, f"{name}-small", lambda: small_trainer(name))


@pytest.mark.parametrize("name", METHODS)
def test_every_part_of_all_providers_is_timed(name: str) -> None:
    rows = measure(name)
    providers = [*steps.PROVIDERS, *([steps.PLAIN] if name == "pici" else [])]
    assert {(row.provider, row.mode) for row in rows} == {(p, m) for p in providers for m in steps.PARTS}
    assert len(rows) == len(providers) * len(steps.PARTS)
    assert {(row.op, row.case, row.status, row.rounds) for row in rows} == {("training_step", f"{name}-small", "ok", 3)}
    assert all(row.per_ours == 1 for row in rows if row.provider == "fused")
    assert all(row.median_ms and row.median_ms > 0 for row in rows)


@pytest.mark.parametrize("error", ["value", "gradient", "nan"])
def test_a_wrong_op_is_named_and_not_timed(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., Any] = fused_hsd_loss

    def planted(teacher: Tensor, student: Tensor, **options: Any) -> Any:
        loss, stats = right(teacher, student, **options)
        if not _extension.NATIVE_DEVICES:
            return loss, stats
        zero = (student - student.detach()).sum()
        return {"value": loss + 0.1, "gradient": loss + 0.1 * zero, "nan": loss * torch.nan}[error], stats

    monkeypatch.setattr("deepclust_ext.losses.hsd.fused_hsd_loss", planted)
    (row,) = measure("hadis")
    assert (row.provider, row.mode, row.median_ms) == ("fused", "step", None)
    wrong = {"value": "loss", "gradient": "gradient of student", "nan": "loss"}[error]
    assert row.status.startswith(f"WRONG: {wrong} is off by ")


def test_a_wrong_plain_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = plain_pici.contrast
    monkeypatch.setattr(plain_pici, "contrast", lambda *inputs: 1.01 * right(*inputs))
    (row,) = measure("pici")
    assert (row.provider, row.mode, row.median_ms) == (steps.PLAIN, "step", None)
    assert row.status.startswith("WRONG: loss is off by ")


def test_a_phase_is_timed_by_its_terms_and_networks_without_a_gradient_are_left_out() -> None:
    trainer = digits_trainer("pici", 0)
    stepper = steps.Stepper(trainer, None)
    stepper.step()
    assert trainer.config.phases[0].passes == {"images": "reconstruction"}
    assert set(stepper.results()) == {"loss", "gradient of backbone", "gradient of decoder"}


def test_only_the_reference_runs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    right = reference.fused_hsd_loss

    def counted(*inputs: Any, **options: Any) -> Any:
        calls.append(1)
        return right(*inputs, **options)

    monkeypatch.setattr(reference, "fused_hsd_loss", counted)
    steppers = steps.make_steppers(lambda: small_trainer("hadis"))
    made = {}
    for provider, stepper in steppers.items():
        with steps.provided_by(provider):
            stepper.step()
        made[provider] = len(calls)
    assert made == {"fused": 0, "reference": 2}
    assert "cpu" in _extension.NATIVE_DEVICES


def test_queues_are_full_and_pseudo_labels_shared() -> None:
    clc = steps.make_steppers(lambda: small_trainer("clc"))
    queues = [stepper.trainer.method.get_buffer("key_queue") for stepper in clc.values()]
    assert (queues[0] != 0).all()
    assert torch.equal(*queues)
    hadis = steps.make_steppers(lambda: small_trainer("hadis"))
    labels = [stepper.pseudo_labels for stepper in hadis.values()]
    assert labels[0] is labels[1]
    assert labels[0] is not None
    assert labels[0].shape == (3 * BATCH,)


@pytest.mark.slow
def test_another_checkout_is_timed_beside() -> None:
    case = next(name for name in CASES if name.startswith("clc-digits"))
    rows = steps.measure(SETTING, 0, case, CASES[case], ROOT)
    other = f"fused at {current_commit()}"
    assert {(row.provider, row.mode) for row in rows} == {
        (p, m) for p in (*steps.PROVIDERS, other) for m in steps.PARTS
    }
    assert {row.status for row in rows} == {"ok"}
    assert f"| {other} / fused |" in steps.step_table(rows).splitlines()[0]


def test_another_checkout_that_computes_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(self: other_checkout.OtherCheckout, request: str) -> dict[str, float]:
        right = stepper.fixed_step()
        return right | {"gradient of student": 1.01 * right["gradient of student"]}

    stepper = steps.make_steppers(lambda: small_trainer("hadis"))["fused"]
    monkeypatch.setattr(other_checkout.OtherCheckout, "__init__", lambda *arguments: None)  # no process
    monkeypatch.setattr(other_checkout.OtherCheckout, "close", lambda self: None)
    monkeypatch.setattr(other_checkout.OtherCheckout, "_ask", answers)
    (row,) = steps.measure(SETTING, 0, "hadis-small", lambda: small_trainer("hadis"), ROOT)
    assert row.provider.startswith("fused at ")
    assert row.status == "WRONG: gradient of student is off by 1.0e-02 from ours, allowed 1e-04"


def test_another_checkout_that_is_none_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        steps.main(["--against", str(tmp_path)])
    assert f"--against: expected a checkout of deepclust_ext, got {tmp_path}" in capfd.readouterr().err
    (tmp_path / "deepclust_ext").mkdir()
    (tmp_path / "deepclust_ext" / "__init__.py").touch()
    other = other_checkout.OtherCheckout(tmp_path, "hadis-digits-64x8x8", 1)
    assert other._process.wait() == 1
    with pytest.raises(RuntimeError, match=f"{tmp_path}: its process ended with status 1"):
        other.step()
    other.close()


class Clock:
    """A clock that only moves when told to."""

    now = 0.0

    def read(self) -> float:
        return self.now

    def tick(self, value: Tensor, forward: float, backward: float) -> Tensor:
        """Return the value; its computation took so long, and that of its gradient will."""
        self.now += forward
        result = value * 1
        if result.requires_grad:
            result.register_hook(lambda gradient: self._advance(backward))
        return result

    def _advance(self, seconds: float) -> None:
        self.now += seconds


class SlowNetwork(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.layer = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(self.clock.tick(images.flatten(1).requires_grad_(), 10, 100))  # type: ignore[no-any-return]


class SlowMethod(ClusteringMethod):
    """Two passes of one network, with a part of the loss between them."""

    num_views = 2
    num_clusters = 2
    default_optimizer = OptimizerSettings("sgd", lr=0.1)

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.network = SlowNetwork(clock)

    def training_step(
        self,
        views: Sequence[Tensor],
        pseudo_labels: Tensor | None = None,
        index: Tensor | None = None,
        *,
        terms: str | None = None,
        epoch: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        first = self.network(views[0])
        self.clock.now += 1
        return self.clock.tick((first + self.network(views[1])).square().mean(), 2, 4), {}

    def after_step(self, progress: float = 0.0) -> None:
        self.clock.now += 1000

    def inference_network(self) -> nn.Module:
        raise NotImplementedError

    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        raise NotImplementedError


def test_the_parts_of_a_step_are_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(steps, "perf_counter", clock.read)
    method = SlowMethod(clock)
    images = TensorDataset(torch.rand(8, 1, 8, 8))
    views = [lambda images: clock.tick(images, 10_000, 0)] * 2
    config = TrainConfig([Phase("main", 2)], batch_size=8)
    stepper = steps.Stepper(Trainer(method, images, views, config, Path("unused")), None)
    before = method.network.layer.weight.detach().clone()
    for _ in range(2):
        assert stepper.step() == {
            "data": 20_000,
            "forward": 20,
            "loss": 3,
            "backward": 204,
            "loss_backward": 4,
            "optimizer": 1000,
            "step": 21_227,
        }
    assert not torch.equal(method.network.layer.weight, before)


def test_the_table_has_shares_of_the_step() -> None:
    times = {"fused": 1.0, "reference": 2.0}
    rows = [
        Row("training_step", "c", provider, mode, "m", "AVX2", "cpu", 1, "2", "c", "float32", "ok", 3, ms, per_ours=ms)
        for provider, unit in times.items()
        for mode, ms in {**dict.fromkeys(steps.PARTS, unit), "step": 5 * unit}.items()
    ]
    lines = steps.step_table(rows).splitlines()
    assert lines[0] == "| part | fused ms | share | reference ms | share | reference / fused |"
    assert lines[4] == "| loss | 1 | 20.0% | 2 | 20.0% | 2 |"
    assert lines[-1] == "| step | 5 | 100.0% | 10 | 100.0% | 10 |"


def test_the_command_prints_tables_and_keeps_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking() -> Trainer:
        raise ImportError("No module named 'torchvision'")

    cases = {"hadis-small": lambda: small_trainer("hadis"), "clc-small": lambda: small_trainer("clc")}
    monkeypatch.setattr(steps, "CASES", {**cases, "clc-photos": lacking})
    assert steps.main(["--method", "clc", "--seconds", "0", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "hadis-small" not in printed
    assert "clc-small\n\n| part |" in printed
    assert "clc-photos\n\nnot installed: No module named 'torchvision'" in printed
    (path,) = tmp_path.iterdir()
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["case"] for line in lines] == ["clc-small"] * 14 + ["clc-photos"]
    monkeypatch.setattr(steps, "TOLERANCE", -1.0)
    assert steps.main(["--method", "clc", "--seconds", "0", "--out", str(tmp_path)]) == 1


@pytest.fixture
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time every step once, where what is asked is whether they agree."""
    monkeypatch.setattr(clock, "LONG_ROUND", 0.0)


# Of the phases of PICI only the one of most losses.
@pytest.mark.usefixtures("one_round")
@pytest.mark.parametrize("case", [case for case in CASES if "digits" in case and not re.search("-(pisd|cli)-", case)])
def test_the_demo_s_step_agrees(case: str) -> None:
    assert {row.status for row in steps.measure(SETTING, 0, case, CASES[case])} == {"ok"}


@pytest.mark.usefixtures("one_round")
@pytest.mark.filterwarnings("ignore:a batch of 8 tells little:RuntimeWarning")
@pytest.mark.parametrize("name", [name for name in METHODS if name not in STAGED])
def test_a_step_with_resnet_18_agrees(name: str) -> None:
    pytest.importorskip("torchvision")
    rows = steps.measure(SETTING, 0, name, lambda: photo_trainer(name, batch_size=8))
    assert {row.status for row in rows} == {"ok"}


@pytest.mark.slow
@pytest.mark.usefixtures("one_round")
@pytest.mark.filterwarnings("ignore:a batch of 2 tells little:RuntimeWarning")
@pytest.mark.parametrize("terms", STAGED["pici"])
def test_a_step_with_the_transformer_of_pici_agrees(terms: str) -> None:
    rows = steps.measure(SETTING, 0, "pici", lambda: photo_trainer("pici", 2, 32, terms))
    assert {row.status for row in rows} == {"ok"}
    assert {row.provider for row in rows} == {*steps.PROVIDERS, steps.PLAIN}
