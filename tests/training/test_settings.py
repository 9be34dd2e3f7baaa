"""Settings: numbers of any library are kept as plain ones and can be resumed; what is none is named before training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepclust_ext.methods import OptimizerSettings
from deepclust_ext.training import KMeansSettings, LearningRate, Phase, TrainConfig
from tests.methods.methodsamples import METHODS, small_hadis
from tests.training.runs import PHASES, Scans, assert_same_run, config_of, make_trainer, stop

Config: Any = TrainConfig  # with values that its annotations do not allow
PHASE = Phase("warmup", 3, {"images": "warmup"})


def numpy_config(real: Any) -> TrainConfig:
    """Return settings whose numbers are numpy's, floats of the type ``real``."""
    two: Any = np.int32(2)
    phases = [Phase(np.str_("warmup"), two, {"images": "warmup"}), Phase("main", 1, pseudo_labels=two)]
    return TrainConfig(
        phases,
        batch_size=np.int64(16),  # type: ignore[arg-type]
        learning_rate=LearningRate("warmup_cosine", np.int64(1), real(0.25), real(5)),  # type: ignore[arg-type]
        optimizer=OptimizerSettings("sgd", real(0.25), np.int64(16), real(0.5), real(0.125)),  # type: ignore[arg-type]
        kmeans=KMeansSettings(np.uint8(2), np.int16(3), np.int64(9), real(0.5)),  # type: ignore[arg-type]
        seed=np.int64(3),  # type: ignore[arg-type]
        num_workers=np.int64(0),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("real", [float, np.float64, np.float32, np.float16])
def test_numbers_of_numpy_are_plain_numbers_and_resume(tmp_path: Path, real: type) -> None:
    assert repr(numpy_config(real)) == repr(numpy_config(float))
    whole = make_trainer(tmp_path / "whole", config=numpy_config(float))
    whole.fit()
    stop(tmp_path / "part", 1, 1, "hadis", config=numpy_config(real))
    resumed = make_trainer(tmp_path / "part", config=numpy_config(real))
    resumed.fit(resume=True)
    assert_same_run(whole, resumed)


@pytest.mark.parametrize("rate", [np.float64(0.01), np.float32(0.01), torch.tensor(0.01)])
def test_rates_of_a_method_s_own_groups_resume(tmp_path: Path, rate: Any) -> None:
    def model() -> Any:
        method = METHODS["clc"].method()
        method.parameter_groups = lambda lr: [
            {"params": list(method.online.parameters()), "lr": rate, "weight_decay": np.float64(0.1)}
            | {"betas": (np.float64(0.9), np.float32(0.99))}  # which SGD has no use for, but keeps
        ]
        return method

    sgd = config_of("clc", optimizer=OptimizerSettings("sgd", 0.1))
    whole = make_trainer(tmp_path / "whole", model=model(), config=sgd)
    whole.fit()
    stop(tmp_path / "part", 1, 1, "clc", model=model(), config=sgd)
    resumed = make_trainer(tmp_path / "part", model=model(), config=sgd)
    resumed.fit(resume=True)
    assert_same_run(whole, resumed)


def test_arguments_of_a_method_that_are_numpy_s_are_compared(tmp_path: Path) -> None:
    stop(tmp_path, 1, 0, "hadis", model=small_hadis(hsd_weight=np.float32(0.5)))
    with pytest.raises(ValueError, match=r"method.hsd_weight: expected 0.5 as in .*, got 0.25"):
        make_trainer(tmp_path, model=small_hadis(hsd_weight=np.float32(0.25))).fit(resume=True)
    make_trainer(tmp_path, model=small_hadis(hsd_weight=0.5)).fit(resume=True)


def test_a_state_that_could_not_be_read_again_is_refused_before_training(tmp_path: Path) -> None:
    model = METHODS["clc"].method()
    model.get_extra_state = lambda: Path("x")
    with pytest.raises(ValueError, match="got a file that holds more than tensors and plain values"):
        make_trainer(tmp_path, model=model, config=config_of("clc")).fit()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Config(PHASE), TypeError, "phases: expected a sequence of Phase, got Phase"),
        (lambda: Config([PHASE, "main"]), TypeError, "phases.1: expected a Phase, got str"),
        (lambda: Config([PHASE], batch_size="16"), TypeError, "batch_size: expected an integer, got '16'"),
        (lambda: Config([PHASE], batch_size=16.0), TypeError, "batch_size: expected an integer, got 16.0"),
        (lambda: Config([PHASE], batch_size=1), ValueError, "batch_size: expected at least 2, got 1"),
        (lambda: Config([PHASE], learning_rate=0.1), TypeError, "learning_rate: expected a LearningRate, got float"),
        (lambda: Config([PHASE], optimizer="adam"), TypeError, "optimizer: expected OptimizerSettings or .*, got str"),
        (lambda: Config([PHASE], kmeans=10), TypeError, "kmeans: expected KMeansSettings, got int"),
        (lambda: Config([PHASE], seed=0.5), TypeError, "seed: expected an integer, got 0.5"),
        (lambda: Config([PHASE], seed=True), TypeError, "seed: expected an integer, got True"),
        (lambda: Config([PHASE], seed=-1), ValueError, "seed: expected 0 to 4294967295, got -1"),
        (lambda: Config([PHASE], seed=2**32), ValueError, "seed: expected 0 to 4294967295, got 4294967296"),
        (lambda: Config([PHASE], num_workers=-1), ValueError, "num_workers: expected at least 0, got -1"),
        (lambda: Phase(3, 1), TypeError, "phase, name: expected text, got int"),  # type: ignore[arg-type]
        (lambda: Phase("p", "2"), TypeError, "phase p, epochs: expected an integer, got '2'"),  # type: ignore[arg-type]
        (lambda: Phase("p", 2, "images"), TypeError, "passes: expected a mapping .*, got str"),  # type: ignore[arg-type]
        (lambda: Phase("p", 2, {"images": 1}), TypeError, "passes.images: .* got int"),  # type: ignore[dict-item]
        (lambda: Phase("p", 2, resample=1), TypeError, "resample: expected True or False, got int"),  # type: ignore[arg-type]
        (lambda: Phase("p", 2, pseudo_labels=[1]), ValueError, r"pseudo_labels: .* got \[1\]"),  # type: ignore[arg-type]
        (lambda: KMeansSettings(n_init="10"), TypeError, "kmeans.n_init: .* got '10'"),  # type: ignore[arg-type]
        (lambda: KMeansSettings(tol=None), TypeError, "kmeans.tol: expected a number, got None"),  # type: ignore[arg-type]
        (lambda: LearningRate("warmup_cosine", "2"), TypeError, "warmup: .* got '2'"),  # type: ignore[arg-type]
        (lambda: LearningRate("warmup_cosine", horizon="9"), TypeError, "horizon: .* got '9'"),  # type: ignore[arg-type]
        (lambda: OptimizerSettings(lr=torch.tensor(0.1)), TypeError, r"lr: expected a number, got tensor\(0.1"),  # type: ignore[arg-type]
        (lambda: OptimizerSettings(momentum="0.9"), TypeError, "momentum: expected a number, got '0.9'"),  # type: ignore[arg-type]
        (lambda: OptimizerSettings(lr_batch_size=2.5), TypeError, "lr_batch_size: .* got 2.5"),  # type: ignore[arg-type]
    ],
)
def test_a_setting_of_another_type_or_range_is_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": torch.nn.Linear(2, 2)}, "method: expected a ClusteringMethod, got Linear"),
        ({"config": {"epochs": 3}}, "config: expected a TrainConfig, got dict"),
        ({"views": None}, "views: expected a list of 2 functions, got NoneType"),
        ({"views": torch.nn.Identity()}, "views: expected a list of 2 functions, got Identity"),
        ({"views": [torch.nn.Identity(), "flip"]}, "views.1: expected a function of a batch, got str"),
        ({"test_view": "resize"}, "test_view: expected a function of a batch or None, got str"),
        ({"out": 3}, "out: expected a path, got int"),
        ({"out": None}, "out: expected a path, got NoneType"),
        ({"recipe": "hadis-digits"}, "recipe: expected a mapping or None, got str"),
    ],
)
def test_an_argument_of_another_type_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        make_trainer(**{"out": tmp_path, **changes})


def test_out_is_text_or_any_path(tmp_path: Path) -> None:
    class PathLike:
        def __fspath__(self) -> str:
            return str(tmp_path / "like")

    config = config_of(phases=(PHASE,))
    for out in (str(tmp_path / "text"), PathLike(), tmp_path / "path"):
        assert len(make_trainer(out, config=config).fit()) == 3  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"text", "like", "path"}
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="out: expected a folder, got the file .*file"):
        make_trainer(tmp_path / "file", config=config)


def test_a_bank_that_does_not_hold_the_images_is_named_at_construction(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bank_size: expected at least 50, the number of images, or 0, got 49"):
        make_trainer(tmp_path, model=small_hadis(bank_size=49))
    two = {"images": Scans(), "more": Scans()}
    passes = config_of(phases=(replace(PHASE, passes={"images": "warmup", "more": "warmup"}),))
    with pytest.raises(ValueError, match="bank_size: expected 0 where phases pass through more too, got 50"):
        make_trainer(tmp_path, two, passes, model=small_hadis(bank_size=50))
    make_trainer(
        tmp_path, two, config_of(phases=PHASES["hadis"]), model=small_hadis(bank_size=50)
    )  # not passed through
