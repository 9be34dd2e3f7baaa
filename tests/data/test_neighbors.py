"""Neighbors as views: against all cosines in float64, rows of zeros, equal rows, cells, and what a call draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from deepclust_ext.data import NeighborView, load_features, make_view
from deepclust_ext.data.neighbors import neighbor_table
from deepclust_ext.data.views import seen_by


def all_cosines(rows: Tensor) -> Tensor:
    """Return the cosines (N, N) in float64, -2 of a row with itself."""
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    cosines: Tensor = (unit @ unit.T).fill_diagonal_(-2)
    return cosines


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_table_is_that_of_all_cosines(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepclust_ext.data.neighbors._BLOCK", 16)  # the last block is a shorter one
    rows = torch.randn(50, 6).to(dtype)
    table = neighbor_table(rows, 4)
    assert table.dtype == torch.int32
    assert torch.equal(table.long(), all_cosines(rows).topk(4, dim=1).indices)


def test_equal_rows_are_not_their_own_neighbors_and_rows_of_zeros_are_nobody_s() -> None:
    rows = torch.randn(1, 6).repeat(12, 1)
    rows[[3, 7]] = 0
    table = neighbor_table(rows, 5)
    assert (table[[3, 7]] == -1).all()
    others = [place for place in range(12) if place not in (3, 7)]
    assert (table[others] >= 0).all()
    assert not ((table == 3) | (table == 7)).any()
    assert not (table == torch.arange(12).unsqueeze(1)).any()


def test_cells_find_nearly_all_and_never_the_row_itself() -> None:
    centers = torch.randn(20, 8)
    rows = (centers.repeat(30, 1) + 0.3 * torch.randn(600, 8))[torch.randperm(600)]
    rows[5] = 0
    exact, near = neighbor_table(rows, 6), neighbor_table(rows, 6, cells=25)
    shared = (near.unsqueeze(2) == exact.unsqueeze(1)).any(dim=2)[torch.arange(600) != 5]
    assert shared.float().mean() > 0.97
    assert not (near == torch.arange(600).unsqueeze(1)).any()
    assert (near[5] == -1).all()
    assert not (near == 5).any()
    assert torch.equal(near, neighbor_table(rows, 6, cells=25))
    # With eight cells at most all rows are compared.
    assert torch.equal(neighbor_table(rows, 6, cells=8), exact)
    assert torch.equal(neighbor_table(rows, 6, cells=1), exact)
    with torch.device("meta"):  # whatever is made without a device has no values
        assert torch.equal(neighbor_table(rows, 6, cells=25), near)


def test_rows_of_any_length_have_the_same_neighbors() -> None:
    """A power of two changes no bit of a direction, though squares of such rows are beyond float32."""
    rows = torch.randn(300, 6)
    for cells in (0, 20):
        assert torch.equal(neighbor_table(2.0**100 * rows, 4, cells=cells), neighbor_table(rows, 4, cells=cells))


def test_each_neighbor_is_drawn_as_often_as_the_others(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float16)
    np.save(tmp_path / "x.npy", rows)
    features = load_features(tmp_path / "x.npy")
    view = NeighborView(3).fit(features)
    table = neighbor_table(torch.from_numpy(rows), 3).long()
    places = torch.tensor([7, 20]).repeat(900)
    seen = view(features.images_at(places.numpy()), places)
    assert seen.shape == (1800, 5, 1, 1)
    for place in (7, 20):
        drawn = seen[places == place].flatten(1)
        counts = [int((drawn == features[near].flatten()).all(dim=1).sum()) for near in table[place].tolist()]
        assert sum(counts) == 900
        assert min(counts) > 240  # of 300; 14 are a standard deviation


def test_what_has_no_neighbor_is_its_own() -> None:
    images = torch.rand(3, 2, 1, 1)
    images[1] = 0
    view = NeighborView(2).fit(TensorDataset(images))
    seen = view(images.half(), torch.arange(3))
    assert seen.dtype == torch.float16
    assert torch.equal(seen, images[[2, 1, 0]].half())
    alone = NeighborView(2).fit(TensorDataset(images[:1]))
    assert torch.equal(alone(images[:1], torch.tensor([0])), images[:1])


def test_images_are_compared_by_their_values() -> None:
    images = (torch.rand(30, 2, 3, 3) * 255).to(torch.uint8)
    view = NeighborView(1).fit(TensorDataset(images, torch.arange(30)))
    near = all_cosines(images.float().flatten(1)).argmax(dim=1)
    assert torch.equal(view(images, torch.arange(30)), images[near])


def test_a_part_of_several_views_is_told_the_places() -> None:
    images = torch.rand(6, 2, 1, 1)
    view = make_view("sequential", views=[{"name": "neighbor", "num_neighbors": 1}, {"name": "noise", "std": 0.0}])
    part = next(part for part in view.modules() if isinstance(part, NeighborView))
    part.share(NeighborView(1).fit(TensorDataset(images)))
    near = all_cosines(images.flatten(1)).argmax(dim=1)
    assert torch.equal(seen_by(view, images[:4], torch.arange(4)), images[near[:4]])
    plain = make_view("sequential", views=[{"name": "noise", "std": 0.0}])
    assert torch.equal(seen_by(plain, images, torch.arange(6)), images)
    assert type(plain) is torch.nn.Sequential


def test_faults_are_named() -> None:
    with pytest.raises(RuntimeError, match="NeighborView: expected fit to be called first"):
        NeighborView()(torch.rand(2, 3, 1, 1), torch.arange(2))
    with pytest.raises(ValueError, match="num_neighbors: expected 1 to 256, got 257"):
        NeighborView(257)

    class Pictures:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, place: int) -> Tensor:
            return torch.rand(1, 2 + place, 2)

    with pytest.raises(ValueError, match="neighbor view: expected images of one size, got several"):
        NeighborView().fit(Pictures())  # type: ignore[arg-type]
