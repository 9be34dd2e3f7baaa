"""The trainer: unseen labels, workers, batches, history, clusters, and a halt at what is not finite."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.data import RandomViews
from deepclust_ext.methods import ClusterHeadMethod, OptimizerSettings
from deepclust_ext.training import KMeansSettings, Phase, TrainConfig, Trainer
from deepclust_ext.training import tally as tally_module
from deepclust_ext.training.files import CHECKPOINT_NAME, HISTORY_NAME, load_checkpoint
from tests.helpers import loading_processes
from tests.methods.methodsamples import METHODS, collapsed
from tests.training.runs import Scans, Stop, assert_same_run, config_of, make_trainer, stop, without_seconds


class Halves(Scans):
    """Images of another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.images = self.images.to(dtype)


WARMUP = (Phase("warmup", 2, {"images": "warmup"}),)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trainer]:
    """A method's whole run, which others are compared with: one for all of them."""
    runs: dict[str, Trainer] = {}

    def plain_run(method: str) -> Trainer:
        if method not in runs:
            runs[method] = make_trainer(tmp_path_factory.mktemp(method), method=method)
            runs[method].fit()
        return runs[method]

    return plain_run


@pytest.mark.parametrize("method", METHODS)
def test_labels_are_never_used(tmp_path: Path, method: str, plain: Callable[[str], Trainer]) -> None:
    for name, labels in (("some", torch.arange(50) % 3), ("others", torch.randperm(50))):
        data: Any = Scans(labels)
        if method == "sacc":
            data = {"images": data, "unlabelled": Scans(labels[:35], count=35, seed=4)}
        trainer = make_trainer(tmp_path / name, data, method=method)
        trainer.fit()
        assert_same_run(plain(method), trainer)


def test_workers_change_nothing(tmp_path: Path) -> None:
    config = config_of(phases=(Phase("main", 2, pseudo_labels=1),))
    alone = make_trainer(tmp_path / "alone", config=config)
    alone.fit()
    helped = make_trainer(tmp_path / "helped", config=TrainConfig(**{**vars(config), "num_workers": 1}))
    helped.fit()
    assert_same_run(alone, helped)


class Moving(Scans):
    """Images that are others at every reading."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index) + torch.rand(())


def test_images_that_workers_draw_are_those_of_the_whole_run(tmp_path: Path) -> None:
    config = config_of("clc", num_workers=2)
    whole = make_trainer(tmp_path / "whole", Moving(), config, "clc")
    whole.fit()
    stop(tmp_path / "part", 2, 1, "clc", data=Moving(), config=config)
    resumed = make_trainer(tmp_path / "part", Moving(), config, "clc")
    resumed.fit(resume=True)
    assert_same_run(whole, resumed)


@pytest.mark.parametrize("step", [None, 0, 5])
@pytest.mark.parametrize("method", ["clc", "sacc"])
def test_workers_stay_for_the_run_and_end_with_it(tmp_path: Path, method: str, step: int | None) -> None:
    processes = []
    spy = nn.Identity()
    spy.register_forward_pre_hook(lambda *_: processes.append(loading_processes()))
    config = config_of(method, num_workers=2)
    trainer = make_trainer(tmp_path, config=config, method=method)
    trainer.views = [spy, *trainer.views[1:-1], Stop(-1 if step is None else step)]
    if step is None:
        trainer.views[-1] = spy
        trainer.fit()
        assert processes[0] == processes[-2] & processes[0]
        assert len(set().union(*processes)) == (4 if method == "sacc" else 2)
    else:
        with pytest.raises(KeyboardInterrupt) as caught:
            trainer.fit()
        assert caught.value.__context__ is not None  # which keeps the frames of the run
    assert not loading_processes()


def test_the_history_is_written_as_it_grows(plain: Callable[[str], Trainer]) -> None:
    trainer = plain("hadis")
    records = [json.loads(line) for line in (trainer.out / HISTORY_NAME).read_text().splitlines()]
    assert records == trainer.history
    assert [record["epoch"] for record in records] == list(range(1, 8))


def test_last_incomplete_batch_is_left_out(tmp_path: Path) -> None:
    # 50 = 7 x 7 + 1: the single image would stop batch normalization.
    sizes: list[int] = []
    spy = nn.Identity()
    spy.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    config = TrainConfig((Phase("warmup", 1, {"images": "warmup"}),), batch_size=7)
    make_trainer(tmp_path, config=config, views=(spy, nn.Identity())).fit()
    assert sizes == [7] * 7


def test_collapse_warns_once(tmp_path: Path) -> None:
    still = OptimizerSettings("sgd", lr=0.0)
    model = collapsed(METHODS["hadis"].method())
    trainer = make_trainer(tmp_path, config=config_of(phases=WARMUP, optimizer=still), model=model)
    with pytest.warns(RuntimeWarning, match="epoch 1: .* collapsed to a point") as caught:
        trainer.fit()
    assert len(caught) == 1


def poison(trainer: Trainer, steps: int, monkeypatch: pytest.MonkeyPatch, value: float = torch.nan) -> list[Tensor]:
    """Give a weight a value that is not finite before the step of this number; return the images' places by step."""
    seen: list[Tensor] = []
    right = trainer.method.training_step

    def planted(views: Any, labels: Any, index: Tensor, **options: Any) -> Any:
        if len(seen) == steps:
            with torch.no_grad():
                next(trainer.method.parameters()).view(-1)[0] = value
        seen.append(index)
        return right(views, labels, index, **options)

    monkeypatch.setattr(trainer.method, "training_step", planted)
    return seen


@pytest.mark.parametrize(
    ("method", "step", "epoch", "phase"), [("hadis", 10, 4, "main"), ("sacc", 12, 4, "both"), ("clc", 3, 2, "main")]
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("steps_between_looks", [1, 64])
def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    step: int,
    epoch: int,
    phase: str,
    value: float,
    steps_between_looks: int,
) -> None:
    monkeypatch.setattr(tally_module, "STEPS_BETWEEN_LOOKS", steps_between_looks)
    good = make_trainer(tmp_path, method=method)
    seen = poison(good, step, monkeypatch, value)
    data = "unlabelled" if method == "sacc" else "images"
    with pytest.raises(FloatingPointError) as caught:
        good.fit()
    message = str(caught.value)
    where = rf"the loss is not finite at step {step} \(epoch {epoch}, phase '{phase}'\): "
    assert re.match(rf"{where}loss (nan|inf), .*; images of '{data}': ", message)
    assert str(seen[step].tolist()) in message
    # The checkpoint is the last good one: that of the epoch before, finite all over.
    state = torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)
    assert len(state["history"]) == epoch - 1
    assert all(tensor.isfinite().all() for tensor in state["method"].values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bad_pixel_stops_the_run_and_leaves_the_last_good_checkpoint(
    tmp_path: Path, method: str, value: float
) -> None:
    scans = Scans(count=96)
    labels = "once" if method == "boost" else "never"
    phases = [Phase("main", 9, {"images": "warmup"} if method == "hadis" else {"images": None}, labels)]
    config = config_of(method, phases=phases, batch_size=32, seed=3)

    class Spoiled(nn.Module):
        """The images, of which one is spoiled after two epochs of three steps."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 6:
                images = images.clone()
                images[5, 0, 4, 4] = value
            return images

    views = [Spoiled(), *[nn.Identity()] * (METHODS[method].num_views - 1)]
    with pytest.raises(
        FloatingPointError, match=r"the loss is not finite at step 6 \(epoch 3, phase 'main'\): loss nan"
    ):
        make_trainer(tmp_path, scans, config, method, views=views).fit()
    state = load_checkpoint(tmp_path / CHECKPOINT_NAME)
    assert len(state["history"]) == 2
    assert all(tensor.isfinite().all() for tensor in state["method"].values())
    lines = (tmp_path / HISTORY_NAME).read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["epoch"] for line in lines] == [1, 2]


def test_weights_that_break_at_the_last_step_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, method="clc")
    after_step = trainer.method.after_step
    calls = []

    def planted(progress: float) -> None:
        after_step(progress)
        calls.append(progress)
        if len(calls) == 6:  # the last of the second epoch, whose loss was fine
            with torch.no_grad():
                trainer.method.get_parameter("online.instance_head.0.weight").fill_(torch.nan)

    monkeypatch.setattr(trainer.method, "after_step", planted)
    with pytest.raises(FloatingPointError, match=r"after step 5 .*not finite is online.instance_head.0.weight$"):
        trainer.fit()
    assert len(torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)["history"]) == 1


def test_means_are_over_the_steps_that_have_a_term() -> None:
    tally = tally_module.Tally()
    for number, terms in enumerate([{"loss": 1.0}, {"loss": 2.0, "cluster": 5.0}, {"loss": 6.0, "cluster": 7.0}]):
        tensors = {name: torch.tensor(value) for name, value in terms.items()}
        tally.add(tally_module.Step(number, 1, "p", "images", tensors, torch.arange(2)))
    assert tally.means() == {"loss": 3.0, "cluster": 6.0}


def test_embed_keeps_the_order_of_the_data(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    rows = trainer.embed()
    assert rows.shape == (50, 8)
    torch.testing.assert_close(rows[17:18], trainer.method.embed(Scans()[17].unsqueeze(0)))


def test_pseudo_labels_and_clusters_are_of_the_test_view(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, test_view=lambda images: 1 - images)
    torch.testing.assert_close(trainer.embed(), trainer.method.embed(1 - Scans().images))
    head = make_trainer(tmp_path, method="sacc", test_view=lambda images: 1 - images)
    assert isinstance(head.method, ClusterHeadMethod)
    assert torch.equal(head.cluster(), head.method.assign(1 - Scans().images).argmax(dim=1))


def test_a_cluster_head_decides_the_clusters(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, method="sacc")
    assert isinstance(trainer.method, ClusterHeadMethod)
    expected = trainer.method.assign(Scans().images).argmax(dim=1)
    assert torch.equal(trainer.cluster(), expected)
    assert not torch.equal(trainer.kmeans(), expected)


def test_without_a_cluster_head_kmeans_decides(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert torch.equal(trainer.cluster(), trainer.kmeans())


def test_kmeans_has_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Spy:
        def __init__(self, num_clusters: int, **options: Any) -> None:
            made.append(options)

        def fit_predict(self, rows: Tensor) -> Tensor:
            return torch.arange(len(rows)) % 4

    monkeypatch.setattr("deepclust_ext.training.config.KMeans", Spy)
    settings = KMeansSettings(n_init=2, final_n_init=5, max_iter=7, tol=0.5)
    phases = (Phase("main", 1, pseudo_labels=1),)
    trainer = make_trainer(tmp_path, config=config_of(phases=phases, kmeans=settings, seed=3))
    trainer.fit()
    trainer.cluster()
    same = {"metric": "cosine", "max_iter": 7, "tol": 0.5, "process_group": None}
    assert made == [same | {"n_init": 2, "random_state": 3000}, same | {"n_init": 5, "random_state": 3}]


def test_more_clusters_than_images_are_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.method.num_clusters = 51
    with pytest.raises(ValueError, match="n_clusters: expected at most 50, the number of rows, got 51"):
        trainer.cluster()
    assert without_seconds(trainer.history) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torch_s_default_dtype_does_not_matter(
    tmp_path: Path, method: str, dtype: torch.dtype, plain: Callable[[str], Trainer]
) -> None:
    expected = plain(method)
    trainer = make_trainer(tmp_path / "other", method=method)
    torch.set_default_dtype(dtype)
    try:
        trainer.fit()
        resumed = make_trainer(
            tmp_path / "own", method=method, data={name: Halves(dtype) for name in ("images", "unlabelled")}
        )  # weights and images of this dtype
        assert resumed.method.get_buffer(next(iter(dict(resumed.method.named_buffers())))).dtype == dtype
        resumed.fit()
        resumed.cluster()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_run(expected, trainer)


@pytest.mark.parametrize("method", METHODS)
def test_torch_s_default_device_does_not_matter(tmp_path: Path, method: str, plain: Callable[[str], Trainer]) -> None:
    config = config_of(method, phases=WARMUP) if method == "hadis" else config_of(method)  # KMeans has its own test
    if method == "hadis":
        expected = make_trainer(tmp_path / "plain", config=config)
        expected.fit()
    else:
        expected = plain(method)
    trainer = make_trainer(tmp_path / "other", method=method, config=config)
    torch.set_default_device("meta")  # whatever is made without a device has no values
    try:
        trainer.fit()
        rows = trainer.embed()
    finally:
        torch.set_default_device(None)
    assert_same_run(expected, trainer)
    assert torch.equal(rows, expected.embed())


@pytest.mark.parametrize("method", METHODS)
def test_deterministic_algorithms_suffice(tmp_path: Path, method: str, plain: Callable[[str], Trainer]) -> None:
    expected = plain(method)
    torch.use_deterministic_algorithms(True)
    try:
        trainer = make_trainer(tmp_path / "other", method=method)
        trainer.fit()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_run(expected, trainer)


def test_what_cannot_train_is_told_before_a_run_is_written(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run")
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, pytest.raises(RuntimeError, match="fit: expected gradients to be recorded"):
            trainer.fit()
    trainer.method.requires_grad_(False)
    with pytest.raises(ValueError, match="method: expected a parameter with requires_grad, got none"):
        trainer.fit()
    assert not (tmp_path / "run" / CHECKPOINT_NAME).exists()


def test_a_view_with_a_generator_of_its_own_is_refused(tmp_path: Path) -> None:
    view = RandomViews(8, generator=torch.Generator())
    method = METHODS["sacc"].method()
    with pytest.raises(ValueError, match="views, 1: expected one that draws from .* got RandomViews"):
        Trainer(method, Scans(), [nn.Identity(), nn.Sequential(view), view], config_of("sacc"), tmp_path)
