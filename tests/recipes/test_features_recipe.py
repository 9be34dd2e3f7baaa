"""The recipe for frozen features: every method builds and learns, and what the number of rows and clusters decides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepclust_ext.data import Features, NeighborView, load_features
from deepclust_ext.recipes.build import make_trainer
from deepclust_ext.recipes.features import _PHASES, features_recipe
from deepclust_ext.recipes.files import _check_view, _checked_model


def features(count: int = 60, columns: int = 6) -> Features:
    generator = np.random.default_rng(0)
    centers = 3 * generator.standard_normal((3, columns))
    return load_features((centers[np.arange(count) % 3] + generator.standard_normal((count, columns))).astype("f4"))


@pytest.mark.parametrize("method", _PHASES)
def test_every_method_learns_from_features(method: str, tmp_path: Path) -> None:
    rows = features()
    recipe, reasons = features_recipe(rows, 3, method=method)
    for view in recipe.views:
        _check_view(view, recipe.name)
    assert _checked_model(recipe, recipe.name) == recipe.model
    assert reasons[0] == "60 rows of 6 features, float32"
    trainer = make_trainer(replace(recipe, phases=tuple(replace(p, epochs=1) for p in recipe.phases)), rows, tmp_path)
    assert all(np.isfinite(list(record.values())).all() for record in trainer.fit())
    assert len(trainer.cluster()) == 60


def test_what_the_numbers_of_rows_and_clusters_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    small, _ = features_recipe(features(), 3)
    assert (small.batch_size, small.epochs, small.kmeans.final_n_init) == (4, 133, 10)
    assert small.views[1] == {"name": "neighbor", "num_neighbors": 10, "cells": 0}
    assert features_recipe(features(), 30)[0].views[1]["num_neighbors"] == 5

    class Many(Features):
        def __init__(self) -> None:
            self.channels, self.kind = 768, "float16"

        def __len__(self) -> int:
            return 1_281_167

    large, reasons = features_recipe(Many(), 1000)
    assert (large.batch_size, large.epochs, large.kmeans.final_n_init) == (1024, 20, 1)
    assert large.views[1] == {"name": "neighbor", "num_neighbors": 50, "cells": 1131}
    assert "50 neighbors of each row, found within 1131 cells, since comparing all pairs would take long" in reasons


def test_views_of_the_same_settings_share_their_neighbors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[NeighborView] = []
    fit = NeighborView.fit

    def noted(view: NeighborView, data: Any) -> NeighborView:
        found.append(view)
        return fit(view, data)

    monkeypatch.setattr(NeighborView, "fit", noted)
    rows = features()
    recipe, _ = features_recipe(rows, 3)
    neighbor = recipe.views[1]
    noisy = {"name": "sequential", "views": [neighbor, {"name": "noise"}]}
    trainer = make_trainer(replace(recipe, views=(neighbor, noisy)), rows, tmp_path)
    assert len([view for view in found if len(view._table) == 60]) == 1
    seen = trainer.views[1][0](rows.images_at(range(60)), torch.arange(60))  # type: ignore[index]
    assert seen.shape == (60, 6, 1, 1)
    unlabelled = replace(recipe, data=replace(recipe.data, unlabelled=60))
    with pytest.raises(ValueError, match="views: expected none of neighbors where .* passes through several data sets"):
        make_trainer(unlabelled, {"images": rows, "unlabelled": rows}, tmp_path)


def test_faults_are_named() -> None:
    known = "NeighborHead, HaDis, CLC, TURTLE"
    with pytest.raises(ValueError, match=f"method: expected one of {known} for features, got 'PICI'"):
        features_recipe(features(), 3, method="PICI")
    with pytest.raises(ValueError, match="num_clusters: expected 1 to 60, the number of rows, got 61"):
        features_recipe(features(), 61)
    with pytest.raises(TypeError, match="features: expected features of deepclust_ext.data.load_features, got ndarray"):
        features_recipe(np.zeros((3, 3)), 2)  # type: ignore[arg-type]


def test_numbers_that_a_perceptron_cannot_take_are_refused(tmp_path: Path) -> None:
    rows = load_features(features().images_at(range(60)).flatten(1).numpy() * np.float32(1e30))
    with pytest.raises(
        ValueError, match=r"data: expected numbers within 1e\+15 for HaDis, .*got .*e\+3.; divide all of them"
    ):
        make_trainer(features_recipe(rows, 3, method="HaDis")[0], rows, tmp_path)
    recipe, _ = features_recipe(rows, 3)
    trainer = make_trainer(replace(recipe, phases=tuple(replace(p, epochs=1) for p in recipe.phases)), rows, tmp_path)
    assert all(np.isfinite(list(record.values())).all() for record in trainer.fit())
    assert len(np.unique(trainer.cluster())) == 3
