"""The ablation of HaDis: short runs of every variant, kept, and made once."""

import csv
import multiprocessing
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset

from benchmarks import hadis_ablation
from benchmarks.report import ROOT
from deepclust_ext import recipes
from deepclust_ext.data import Digits
from deepclust_ext.methods import HaDis

#: Scans of runs whose scores do not matter.
FEW = 256


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs have the first scans alone, in processes that know it: forks of this one."""
    load, get_context = recipes.load, multiprocessing.get_context

    def load_few(name: str, changes: dict[str, Any] | None = None) -> recipes.Recipe:
        return load(name, {**(changes or {}), "data.images": FEW})

    def fork(method: str) -> BaseContext:
        assert method == "spawn"
        return get_context("fork")

    monkeypatch.setattr(multiprocessing, "get_context", fork)
    monkeypatch.setattr(hadis_ablation, "Digits", lambda: Subset(Digits(), range(FEW)))
    monkeypatch.setattr(recipes, "load", load_few)


@pytest.mark.usefixtures("few")
def test_every_variant_is_trained_once_and_put_into_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ablation.csv"
    arguments = ["--seeds", "0", "--epochs", "1", "--out", str(path)]
    assert hadis_ablation.main(arguments) == 0
    table = capsys.readouterr().out
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["variant"] for line in lines] == list(hadis_ablation.VARIANTS)
    assert all(0 < float(line["acc"]) <= 1 and line["seed"] == "0" for line in lines)
    assert [row.split(" | ")[0].strip("| ") for row in table.splitlines()[2:]] == list(hadis_ablation.VARIANTS)
    before = path.read_text()
    monkeypatch.setattr(hadis_ablation, "train", None)  # nothing is left to be made
    assert hadis_ablation.main(arguments) == 0
    assert path.read_text() == before
    assert capsys.readouterr().out == table


def test_the_table_has_means_over_seeds() -> None:
    lines = [
        {"variant": "DSA", "acc": acc, "nmi": "0.5", "ari": "0.25", "knn_accuracy": "1"} for acc in ("0.5", "0.75")
    ]
    assert hadis_ablation.table(lines).splitlines()[2] == "| DSA | 0.625 | 0.500 | 0.250 | 1.000 | 0.500, 0.750 |"


def test_the_table_of_the_docs_is_that_of_the_committed_runs() -> None:
    runs = hadis_ablation.read_runs(hadis_ablation.RESULTS, recipes.load(hadis_ablation.RECIPE).epochs)
    assert hadis_ablation.table(runs) in (ROOT / "docs" / "hadis.md").read_text()


def test_the_variants_switch_off_what_they_say() -> None:
    def weights(variant: str) -> tuple[float, float, int]:
        options = {"prototype_weight": 3.0} | dict(hadis_ablation.VARIANTS[variant])
        method = HaDis(torch.nn.Flatten(), 64, 10, hidden_dim=4, embedding_dim=4, **options)
        return method.hsd_weight, method.prototype_weight, len(method.bank)

    assert [weights(variant) for variant in hadis_ablation.VARIANTS] == [
        (0.0, 0.0, 0),
        (1.0, 0.0, 0),
        (1.0, 3.0, 0),
        (1.0, 3.0, 1797),
    ]
