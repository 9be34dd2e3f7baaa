"""The benchmark of heads on features, at a size for tests: every part's lines, its checks, and the mixtures."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import features
from benchmarks.mixtures import Mixture
from benchmarks.plain_neighborhead import PlainNeighborHead, plain_table
from benchmarks.report import ROOT
from deepclust_ext.data.neighbors import neighbor_table
from deepclust_ext.recipes.features import features_recipe

SMALL = ("--rows", "200", "--columns", "8", "--clusters", "4", "--heads", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "missing_kernels", lambda device: None)
    monkeypatch.setattr(features, "alone", lambda function, *arguments, **_: function(*arguments))
    monkeypatch.setattr(features, "PROVIDERS", ("ours", "plain torch"))


def run(path: Path, *options: str) -> list[dict[str, str]]:
    """Return the lines that the benchmark writes."""
    assert features.main([*options, "--out", str(path)]) == 0
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_parts_write_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*arguments: Any, **options: Any) -> Any:
        recipe, reasons = features_recipe(*arguments, **options)
        return recipe.with_epochs(2), reasons

    monkeypatch.setattr("benchmarks.features.features_recipe", short)
    lines = run(tmp_path / "x.csv", *SMALL, "--part", "quality", "epoch", "neighbors")
    assert [(line["part"], line["provider"]) for line in lines] == [
        ("quality", "k-means, best of 10"),
        ("quality", "NeighborHead"),
        ("epoch", "ours"),
        ("epoch", "plain torch"),
        ("neighbors", "ours"),
        ("neighbors", "products and topk"),
    ]
    assert all(0 < float(line["acc"]) <= 1 for line in lines[:2])
    assert all(float(line["seconds"]) > 0 for line in lines)
    assert lines[-1]["note"] == "1.000000 as ours"


def test_the_large_part_at_a_small_size(tmp_path: Path) -> None:
    options = ("--part", "scale", "--scale-rows", "640", "--scale-columns", "6", "--clusters", "4")
    lines = run(tmp_path / "x.csv", *options, "--folder", str(tmp_path), "--threads", "1")
    assert [int(line["rows"]) for line in lines[::3]] == [80, 160, 320, 640, 160, 160]
    assert [int(line["clusters"]) for line in lines[::3]] == [4, 4, 4, 4, 1, 2]
    assert all(float(line["peak_mb"]) > 0 for line in lines)
    assert not list(tmp_path.glob("*/*.npy"))


def test_a_wrong_step_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PlainNeighborHead.forward
    monkeypatch.setattr(PlainNeighborHead, "forward", lambda plain, a, b: 1.01 * forward(plain, a, b))
    assert features.main([*SMALL, "--part", "epoch", "--out", str(tmp_path / "x.csv")]) == 1
    with (tmp_path / "x.csv").open(newline="") as stream:
        _, plain = csv.DictReader(stream)
    assert (plain["note"], plain["seconds"]) == ("WRONG", "")


def test_plain_neighbors_are_ours() -> None:
    rows = torch.randn(60, 5)
    assert torch.equal(plain_table(rows, 4, block=25), neighbor_table(rows, 4).long())


def test_a_mixture_has_its_centers_and_its_concentration() -> None:
    source = Mixture(16, 5, 40.0, 0)
    rows, labels = source.draw(4000)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4000))
    cosines = (rows.double() * source._centers[labels]).sum(dim=1)
    # The mean resultant length of a von Mises-Fisher distribution, within bounds of Amos (1974).
    nu, kappa = 16 / 2 - 1, 40.0
    low = kappa / (nu + 0.5 + ((nu + 1.5) ** 2 + kappa**2) ** 0.5)
    high = kappa / (nu + ((nu + 2) ** 2 + kappa**2) ** 0.5)
    assert low - 0.003 <= float(cosines.mean()) <= high + 0.003
    again, _ = Mixture(16, 5, 40.0, 0).draw(4000)
    assert torch.equal(again, rows)
    assert not torch.equal(source.draw(4000)[0], rows)


def test_pages_have_the_figures_of_the_committed_lines() -> None:
    pages = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("features", "neighborhead")}
    with features.RESULTS.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    (ours,) = (line for line in lines if (line["part"], line["provider"]) == ("epoch", "ours"))
    for line in lines:
        assert line["note"] != "WRONG"
        if line["part"] == "quality":
            figures = f"| {float(line['acc']):.3f} | {float(line['nmi']):.3f} |"
            assert figures in pages["features"]
        elif line["part"] == "epoch":
            ratio = float(line["seconds"]) / float(ours["seconds"])
            figures = f"| {line['provider']} | {ratio:.3g} | {float(line['peak_mb']):.0f} MB |"
            assert figures in pages["neighborhead"]
        elif line["part"] == "scale" and line["clusters"] == "1000":
            assert f"{int(line['note'].split()[0]):,}" in pages["features"]
