"""Training on several ranks ends where one process does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from deepclust_ext.data import Digits, NeighborView, RandomAffine, RandomGamma
from deepclust_ext.distributed import contrastive, mining, ring
from deepclust_ext.methods import ClusteringMethod
from deepclust_ext.training import LearningRate, Phase, TrainConfig, Trainer, seed_everything
from deepclust_ext.training.stop import Stopped
from tests.distributed.pool import Pool
from tests.methods.methodsamples import METHODS

#: Digits, and those of a second data set; a batch is no multiple of four ranks, and leaves images over.
IMAGES, OTHERS, BATCH = 130, 60, 30
WARM_UP = Phase("warmup", 1, {"images": "warmup"})

#: Two epochs or three of each method, by all of its terms.
RUNS: dict[str, tuple[str, tuple[Phase, ...], dict[str, Any]]] = {
    "hadis": ("hadis", (WARM_UP, Phase("main", 1, pseudo_labels=1, resample=True)), {"noise_std": 0.1}),
    "hadis-bank": ("hadis", (WARM_UP, Phase("main", 1, pseudo_labels=1)), {"bank_size": IMAGES, "num_neighbors": 3}),
    "boost": ("boost", (Phase("main", 2, pseudo_labels=1),), {"noise_std": 0.1}),
    "sacc": (
        "sacc",
        (Phase("both", 1, {"others": "instance", "images": "all"}), Phase("labels", 1, {"images": "labels"}, "once")),
        {},
    ),
    "clc": (
        "clc",
        (
            Phase("instance", 1, {"images": "instance"}),
            Phase("labels", 1, {"images": "labels"}, "once"),
            Phase("main", 1),
        ),
        {},
    ),
    "neighborhead": (
        "neighborhead",
        (Phase("labels", 1, {"images": "labels"}, "once"), Phase("main", 1)),
        {"momentum": 0.9},
    ),
    "turtle": ("turtle", (Phase("labels", 1, {"images": "labels"}, "once"), Phase("main", 1)), {"spaces": [16, 20]}),
    "pici": (
        "pici",
        (
            Phase("pisd", 1, {"images": "reconstruction"}),
            Phase("picd", 1),
            Phase("cli", 1, {"images": "labels"}, "once"),
        ),
        {},
    ),
}
RUNS |= {"hadis-blocks": RUNS["hadis"], "sacc-gathered": RUNS["sacc"]}
#: How losses go over ranks where they would go otherwise: in blocks, as above 256 MB, and gathered, as on CUDA.
FORMS: dict[str, list[tuple[Any, str, Any]]] = {
    "hadis-blocks": [(mining, "MOST_GATHERED_BYTES", 0), (ring, "BLOCK", 8)],
    "sacc-gathered": [(contrastive, "has_pair_kernels", lambda rows: False)],
}
#: In double precision sums in another order differ by nothing that training enlarges: Adam makes whole steps of the
#: rounding of gradients that are 0, as those of biases ahead of a batch normalization.
CLOSE = 1e-8


def make_trainer(
    name: str, out: Path, *, dtype: torch.dtype = torch.float64, sync: bool = True, **ranks: Any
) -> Trainer:
    """Return the trainer of a run, the same on every rank."""
    kind, phases, options = RUNS[name]
    seed_everything(5)
    method = METHODS[kind].method(**options, **ranks).to(dtype)
    digits = Digits()
    data = {"images": Subset(digits, range(IMAGES)), "others": Subset(digits, range(IMAGES, IMAGES + OTHERS))}
    if kind != "sacc":
        del data["others"]
    views: list[nn.Module] = [nn.Sequential(RandomAffine(), RandomGamma())] * METHODS[kind].num_views
    if kind == "neighborhead":
        views[1] = NeighborView(5).fit(data["images"])
    schedule = LearningRate("warmup_cosine", 1.0)
    config = TrainConfig(phases, batch_size=BATCH, learning_rate=schedule, sync_batch_norm=sync)
    return Trainer(method, data, views, config, out)


@contextmanager
def form_of(name: str) -> Iterator[None]:
    """Let a run's losses go over ranks in the form that its name asks for."""
    with pytest.MonkeyPatch.context() as patch:
        for place, attribute, value in FORMS.get(name, []):
            patch.setattr(place, attribute, value)
        yield


def train(group: Any, name: str, out: Path, resume: bool = False, **options: Any) -> Any:
    """Train on a rank of a group, or with None on one process, and return history, state and random numbers."""
    ranks = {} if group is None else {"gather_distributed": True, "process_group": group}
    trainer = make_trainer(name, out, **options, **ranks)
    with form_of(name):
        history = trainer.fit(resume=resume)
    return history, copy(trainer.method), torch.rand(3)


def copy(method: ClusteringMethod) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def stop(group: Any, name: str, out: Path, rank: int, step: int) -> str:
    """Ask one rank to stop within a step, and return what the run says."""
    trainer = make_trainer(name, out, gather_distributed=True, process_group=group)
    after_step = trainer.method.after_step
    steps = iter(range(1, 100))

    def after(progress: float) -> None:
        after_step(progress)
        trainer.stop = trainer.stop or (next(steps) == step and group.rank() == rank)

    trainer.method.after_step = after  # type: ignore[assignment]
    with form_of(name), pytest.raises(Stopped) as caught:
        trainer.fit()
    return str(caught.value)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return what a run in one process comes to, which is made once."""
    known: dict[str, Any] = {}

    def run(name: str) -> Any:
        if name not in known:
            known[name] = train(None, name, tmp_path_factory.mktemp(name))
        return known[name]

    return run


def assert_same_end(answers: list[Any], alone: Any) -> None:
    """Require the end of one process on every rank, and among the ranks the same bits."""
    history, state, drawn = alone
    for own_history, own, own_drawn in answers:
        for before, after in zip(history, own_history, strict=True):
            assert before.keys() == after.keys()
            for key in before.keys() - {"seconds"}:
                assert after[key] == pytest.approx(before[key], rel=1e-5, abs=1e-6), key
        for key, value in state.items():
            torch.testing.assert_close(own[key], value, rtol=0, atol=CLOSE, msg=key)
            assert torch.equal(own[key], answers[0][1][key]), key
        assert torch.equal(own_drawn, drawn)


def test_every_method_trains_on_ranks() -> None:
    assert {method for method, _, _ in RUNS.values()} == set(METHODS)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_ranks_ends_where_one_process_does(
    pool: Pool, alone: Callable[[str], Any], tmp_path: Path, name: str, ranks: int
) -> None:
    assert_same_end(pool.run(train, name, tmp_path, ranks=ranks), alone(name))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.previous.pt",
        "checkpoint.pt",
        "history.jsonl",
        "run.lock",
    ]


@pytest.mark.parametrize(
    "name", [name if name == "clc" else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_a_run_that_one_rank_is_asked_to_stop_goes_on_with_another_number_of_ranks(
    pool: Pool, alone: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    steps = 6 if name.startswith("sacc") else 4  # in the first epoch, of which sacc's has two data sets
    says = pool.run(stop, name, tmp_path, 1, steps + 2, ranks=2)
    assert says[0].startswith("stopped in epoch 2 after step 2 of 4")
    assert says[1] == says[0]
    answers = pool.run(train, name, tmp_path, True, ranks="3")
    assert_same_end(answers, alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hadis", "sacc", "clc"])
def test_in_single_precision_all_is_as_near_but_what_adam_makes_of_gradients_of_0(
    pool: Pool, tmp_path: Path, name: str
) -> None:
    _, expected, _ = train(None, name, tmp_path / "alone", dtype=torch.float32)
    ((_, state, _), _) = pool.run(train_in_float32, name, tmp_path / "ranks", ranks=2)
    for key, value in expected.items():
        # Biases ahead of a batch normalization, and the means that follow them.
        if name == "hadis" or not key.endswith((".0.bias", ".1.running_mean")):
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-5, msg=key)


def train_in_float32(group: Any, name: str, out: Path) -> Any:
    return train(group, name, out, dtype=torch.float32)


def test_ranks_that_normalize_by_themselves_have_one_state_and_one_end_of_their_own(
    pool: Pool, alone: Callable[[str], Any], tmp_path: Path
) -> None:
    first, second = (state for _, state, _ in pool.run(train_unsynchronized, "sacc", tmp_path, ranks=2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    _, expected, _ = alone("sacc")
    name = "backbone.1.running_var"
    assert not torch.allclose(first[name], expected[name], rtol=0, atol=CLOSE)


def train_unsynchronized(group: Any, name: str, out: Path) -> Any:
    return train(group, name, out, sync=False)
