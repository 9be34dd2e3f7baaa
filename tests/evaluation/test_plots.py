"""The figure of a run: clusters like their classes, and a panel for each kind of statistic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepclust_ext.evaluation import plots
from deepclust_ext.evaluation.plots import match_clusters, save_overview
from deepclust_ext.methods import CLC
from tests.methods.methodsamples import METHODS, every_statistic


def test_clusters_are_numbered_like_their_classes() -> None:
    labels_true = np.array([0, 0, 0, 1, 1, 1, 1])
    labels_pred = np.array([8, 8, 5, 3, 3, 3, 5])
    table, matched = match_clusters(labels_true, labels_pred)
    assert table.tolist() == [[2, 0, 1], [0, 3, 1]]
    assert matched.tolist() == [0, 0, 2, 1, 1, 1, 2]
    # Fewer clusters than classes: the class without a cluster has no column.
    table, matched = match_clusters(labels_true, np.zeros(7, dtype=np.int64))
    assert table.tolist() == [[3], [4]]
    assert matched.tolist() == [1] * 7


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The lines of every panel, by its title."""
    pytest.importorskip("matplotlib")
    panels: dict[str, list[str]] = {}
    right = plots.draw_curves

    def spy(axes: Any, history: Any, title: str, names: Any) -> None:
        right(axes, history, title, names)
        panels[axes.get_title()] = [line.get_label() for line in axes.lines]

    monkeypatch.setattr(plots, "draw_curves", spy)
    return panels


@pytest.mark.parametrize("name", METHODS)
def test_every_statistic_has_its_panel(name: str, tmp_path: Path, drawn: dict[str, list[str]]) -> None:
    sample = METHODS[name]
    method = sample.method()
    record = every_statistic(method)
    history = [{"epoch": epoch, "lr": 0.1, "seconds": 1.0} | record for epoch in (1.0, 2.0)]
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    labels = np.arange(40) % 4
    save_overview(tmp_path / "overview.png", rows, labels, labels, history, method.axes)
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == {f"{title}, mean of an epoch": list(names) for title, names in method.axes.items()}
    # Every statistic of a step is drawn once, and no learning rate.
    assert sorted(label for labels in drawn.values() for label in labels) == sorted(record)


def test_a_count_of_clusters_never_shares_an_axis_with_a_loss() -> None:
    (names,) = (names for names in CLC.axes.values() if "used_clusters" in names)
    assert names == ("used_clusters",)


def test_terms_of_some_epochs_leave_gaps(drawn: dict[str, list[str]]) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    history = [{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": 1.0, "cluster": 3.0}]
    plots.draw_curves(axes, history, "loss", ("loss", "cluster", "never"))
    assert [line.get_label() for line in axes.lines] == ["loss", "cluster"]
    assert np.isnan(np.asarray(axes.lines[1].get_ydata())[0])
    plots.draw_curves(Figure().subplots(), history, "empty", ("never",))
    assert drawn["empty, mean of an epoch"] == []


@pytest.mark.parametrize(("classes", "clusters", "step"), [(10, 10, 1), (3, 12, 1), (40, 40, 1), (100, 100, 3)])
def test_every_class_of_the_confusion_matrix_has_its_number(classes: int, clusters: int, step: int) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plots._draw_confusion(axes, np.eye(classes, clusters, dtype=np.int64))
    assert list(axes.get_xticks()) == list(range(0, clusters, step))
    assert list(axes.get_yticks()) == list(range(0, classes, step))
