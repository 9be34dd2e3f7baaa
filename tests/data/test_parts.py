"""Slices of Images: data sets of some of the images, which are not read or kept again."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from deepclust_ext.data import Images, load_images
from deepclust_ext.inference.images import IndexedImages

VALUES = np.random.default_rng(0).integers(0, 256, (6, 5, 7), np.uint8)
LABELS = [1, 0, 2, 1, 0, 2]


def folder_of(path: Path, *, sizes_differ: bool = False) -> Path:
    path.mkdir()
    for index, values in enumerate(VALUES):
        Image.fromarray(values[: 5 - (sizes_differ and index % 2)]).save(path / f"{index}.png")
    return path


@pytest.fixture(params=["array", "none", "ram", "disk", "sizes"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> Images:
    """Six labeled images of each way to have them."""
    if request.param == "array":
        return load_images(VALUES, labels=LABELS, cache="none")
    path = folder_of(tmp_path / "scans", sizes_differ=request.param == "sizes")
    cache = "ram" if request.param == "sizes" else request.param
    return load_images(path, labels=LABELS, cache=cache, cache_folder=tmp_path / "kept")


@pytest.mark.parametrize("key", [slice(0, 2), slice(None), slice(-2, None), slice(1, 6, 2), slice(None, None, -1)])
def test_a_slice_is_a_data_set_of_these_images(images: Images, key: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(images)
    monkeypatch.setattr("deepclust_ext.data.sources.look_at", None)  # no image is looked at again
    part = pickle.loads(pickle.dumps(images[key]))
    assert isinstance(part, Images)
    assert (len(part), part.names, part.classes) == (len(whole[key]), images.names[key], images.classes)
    assert part.labels is not None
    assert [label for _, label in part] == part.labels.tolist() == LABELS[key]
    assert all(torch.equal(image, expected) for (image, _), (expected, _) in zip(part, whole[key], strict=True))
    assert [part.path(index) for index in range(len(part))] == [images.path(index) for index in range(6)][key]
    assert part.notes[0] == f"{len(part)} of {images.notes[0]}"
    assert sum(part.kinds.values()) == len(part)
    loader = DataLoader(IndexedImages(part, any_size=True), 4, collate_fn=IndexedImages(part, any_size=True).collate)
    batches = [(image, int(index)) for found, indices in loader for image, index in zip(found, indices, strict=True)]
    assert all(torch.equal(image, part[index][0]) for image, index in batches)
    assert len(batches) == len(part)


def test_a_slice_of_a_slice_and_what_all_images_had(images: Images) -> None:
    part = images[1:][::2][1:]
    assert part.names == images.names[3::2]
    assert all(torch.equal(part[index][0], images[3 + 2 * index][0]) for index in range(2))
    assert len(images) == 6
    assert images[:].fingerprint == images.fingerprint != part.fingerprint


def test_what_follows_from_all_images_follows_from_a_part(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "scans", sizes_differ=True)
    images = load_images(path, cache="none")
    assert (images.image_size, images[::2].image_size, images[1::2].image_size) == (None, (5, 7), (4, 7))
    assert images[::2].kinds == {(5, 7, 1, "uint8"): 3}
    for odd in range(1, 6, 2):
        (path / f"{odd}.png").unlink()
    assert load_images(path, cache="none").fingerprint == images[::2].fingerprint


def test_places_are_integers_of_any_kind(images: Images) -> None:
    for place in (4, -2, np.int64(4), torch.tensor(4)):
        assert torch.equal(images[place][0], images[4][0])
    some = Subset(images, torch.tensor([5, 2]))  # type: ignore[arg-type]
    assert torch.equal(some[1][0], images[2][0])


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (6, IndexError, "index: expected -6 to 5, got 6"),
        (-7, IndexError, "index: expected -6 to 5, got -7"),
        (1.0, TypeError, "index: expected an integer or a slice, got 1.0"),
        ([0, 1], TypeError, r"index: expected an integer or a slice, got \[0, 1\]"),
        (slice(6, 9), ValueError, r"index: expected a slice with at least one of 6 images, got slice\(6, 9, None\)"),
    ],
)
def test_errors(images: Images, index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        images[index]
