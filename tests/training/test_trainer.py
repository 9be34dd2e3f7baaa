"""The trainer: exact resume, unseen labels, atomic checkpoints, schedule, messages."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from deepclust_ext.data import RandomAffine
from deepclust_ext.methods import ClusterHeadMethod, HaDis
from deepclust_ext.training.trainer import (
    CHECKPOINT_NAME,
    HISTORY_NAME,
    TrainConfig,
    Trainer,
    save_atomically,
    seed_everything,
    warmup_cosine,
)
from tests.methods.methodsamples import METHODS, NUM_CLUSTERS, collapsed, small_hadis

CONFIG = TrainConfig(epochs=4, warmup_epochs=1, lr_warmup_epochs=1, batch_size=16)


class Scans(Dataset[Any]):
    """Fifty noisy images; items are images, or (image, label) when labels are given."""

    def __init__(self, labels: Tensor | None = None) -> None:
        self.images = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        self.labels = labels

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Any:
        image = self.images[index]
        return image if self.labels is None else (image, self.labels[index])


class Interrupt(nn.Module):
    """An augmentation that stops the run at its n-th batch."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.left = batch

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return images


def make_trainer(
    out: Path,
    dataset: Dataset[Any] | None = None,
    config: TrainConfig = CONFIG,
    method: str = "hadis",
    **extra: Any,
) -> Trainer:
    seed_everything(5)
    sample = METHODS[method]
    model = sample.method()
    augmentations = extra.get("augmentations", [RandomAffine()] * sample.num_views)
    return Trainer(model, model.make_optimizer(32), dataset or Scans(), augmentations, config, out)


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def assert_same_run(first: Trainer, second: Trainer) -> None:
    assert without_seconds(first.history) == without_seconds(second.history)
    weights = second.method.state_dict()
    for name, weight in first.method.state_dict().items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_four_epochs_equal_two_and_two_more(tmp_path: Path, method: str) -> None:
    whole = make_trainer(tmp_path / "whole", method=method)
    whole.fit()
    # Three batches an epoch: the run stops in the middle of its third epoch.
    stopping = nn.Sequential(Interrupt(7), RandomAffine())
    augmentations = [*whole.augmentations[1:], stopping]
    interrupted = make_trainer(tmp_path / "part", method=method, augmentations=augmentations)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit()
    assert len(interrupted.history) == 2
    resumed = make_trainer(tmp_path / "part", method=method)
    seed_everything(99)  # another process has other generators
    resumed.fit(resume=True)
    assert_same_run(whole, resumed)
    assert torch.equal(whole.cluster(), resumed.cluster())
    records = [json.loads(line) for line in (tmp_path / "part" / HISTORY_NAME).read_text().splitlines()]
    assert without_seconds(records) == without_seconds(whole.history)


def test_resume_restores_every_generator(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    expected = (torch.rand(1), np.random.rand(), random.random())
    seed_everything(99)
    make_trainer(tmp_path).fit(resume=True)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_a_bank_knows_its_images_and_resumes(tmp_path: Path) -> None:
    def with_bank(out: Path, augmentations: list[nn.Module]) -> Trainer:
        seed_everything(5)
        model = small_hadis(bank_size=50)
        return Trainer(model, model.make_optimizer(32), Scans(), augmentations, CONFIG, out)

    whole = with_bank(tmp_path / "whole", [RandomAffine()] * 2)
    whole.fit()
    assert isinstance(whole.method, HaDis)
    assert whole.method.in_bank.all()  # four epochs of 48 of the 50 images each
    # An image's entry is more like its own row than like the mean row.
    rows = whole.embed()
    own = (whole.method.bank * rows).sum(dim=1)
    assert float(own.mean()) > float((whole.method.bank @ rows.T).mean())
    stopped = with_bank(tmp_path / "part", [RandomAffine(), nn.Sequential(Interrupt(7), RandomAffine())])
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = with_bank(tmp_path / "part", [RandomAffine()] * 2)
    resumed.fit(resume=True)
    assert_same_run(whole, resumed)


@pytest.mark.parametrize("method", METHODS)
def test_labels_are_never_used(tmp_path: Path, method: str) -> None:
    runs = []
    for name, labels in (("none", None), ("some", torch.arange(50) % 3), ("others", torch.randperm(50))):
        trainer = make_trainer(tmp_path / name, Scans(labels), method=method)
        trainer.fit()
        runs.append(trainer)
    assert_same_run(runs[0], runs[1])
    assert_same_run(runs[0], runs[2])


def test_workers_change_nothing(tmp_path: Path) -> None:
    alone = make_trainer(tmp_path / "alone")
    alone.fit()
    helped = make_trainer(tmp_path / "helped", config=TrainConfig(**{**vars(CONFIG), "num_workers": 1}))
    helped.fit()
    assert_same_run(alone, helped)


def test_checkpoint_holds_only_tensors_and_scalars(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    state = torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)
    assert len(state["history"]) == 4
    assert state["settings"] == vars(CONFIG) | {"num_clusters": NUM_CLUSTERS}


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / CHECKPOINT_NAME
    save_atomically({"epoch": 1}, path)

    def half_written(state: Any, stream: Any) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_atomically({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    monkeypatch.undo()
    save_atomically({"epoch": 3}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 3}
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT_NAME]


def test_last_incomplete_batch_is_left_out(tmp_path: Path) -> None:
    # 50 = 7 x 7 + 1: the single image would stop batch normalisation.
    config = TrainConfig(epochs=1, warmup_epochs=0, lr_warmup_epochs=0, batch_size=7)
    sizes: list[int] = []
    spy = nn.Identity()
    spy.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    make_trainer(tmp_path, config=config, augmentations=(spy, nn.Identity())).fit()
    assert sizes == [7] * 7


def test_collapse_warns_once(tmp_path: Path) -> None:
    config = TrainConfig(epochs=2, warmup_epochs=2, lr_warmup_epochs=0, batch_size=16)
    trainer = make_trainer(tmp_path, config=config)
    collapsed(trainer.method)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    trainer = Trainer(trainer.method, trainer.optimizer, Scans(), trainer.augmentations, config, tmp_path)
    with pytest.warns(RuntimeWarning, match="epoch 1: .* collapsed to a point") as caught:
        trainer.fit()
    assert len(caught) == 1


def test_schedule() -> None:
    rates = [warmup_cosine(step, 4, 12) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert rates[12] == pytest.approx(0.0)
    assert warmup_cosine(0, 0, 10) == 1.0


def test_embed_keeps_the_order_of_the_data(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    rows = trainer.embed()
    assert rows.shape == (50, 8)
    torch.testing.assert_close(rows[17:18], trainer.method.embed(Scans()[17].unsqueeze(0)))


def test_a_cluster_head_decides_the_clusters(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, method="sacc")
    assert isinstance(trainer.method, ClusterHeadMethod)
    expected = trainer.method.assign(Scans().images).argmax(dim=1)
    assert torch.equal(trainer.cluster(), expected)
    assert not torch.equal(trainer.kmeans(), expected)


def test_without_a_cluster_head_kmeans_decides(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert torch.equal(trainer.cluster(), trainer.kmeans())


def test_errors_name_the_argument(tmp_path: Path) -> None:
    too_big = TrainConfig(epochs=60, batch_size=64)
    with pytest.raises(ValueError, match="batch_size: expected 2 to 50, the size of the data set, got 64"):
        make_trainer(tmp_path, config=too_big)
    with pytest.raises(ValueError, match=r"warmup_epochs: expected 0 to epochs \(4\), got 50"):
        make_trainer(tmp_path, config=TrainConfig(epochs=4, batch_size=16))
    with pytest.raises(FileNotFoundError, match="resume: expected a checkpoint at .*, got none"):
        make_trainer(tmp_path).fit(resume=True)
    make_trainer(tmp_path).fit()
    with pytest.raises(ValueError, match="epochs: expected 4 as in .*, got 5"):
        make_trainer(tmp_path, config=TrainConfig(**{**vars(CONFIG), "epochs": 5})).fit(resume=True)
    trainer = make_trainer(tmp_path)
    trainer.method.num_clusters = 51
    with pytest.raises(ValueError, match="num_clusters: expected 4 as in .*, got 51"):
        trainer.fit(resume=True)
    with pytest.raises(ValueError, match="n_clusters: expected at most 50, the number of rows, got 51"):
        trainer.cluster()
