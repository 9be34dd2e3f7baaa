"""The papers' data sets from tiny files in their original formats."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deepclust_ext import recipes
from deepclust_ext.data import DATASETS, Images, load_dataset
from deepclust_ext.data.datasets import IMAGENET_10, IMAGENET_DOGS

RNG = np.random.default_rng(0)


def stacked(images: Images) -> NDArray[Any]:
    """Return all images (N, C, H, W), which are the numbers from 0 to 255 that they were."""
    pictures = torch.stack([item[0] if images.labels is not None else item for item in images])
    assert pictures.dtype == torch.uint8
    return pictures.numpy()


def rows(count: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (count, 3072)).astype(np.uint8)


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (4, 4, 3)).astype(np.uint8)).save(path)


@pytest.mark.parametrize("binary", [False, True])
def test_cifar10(tmp_path: Path, binary: bool) -> None:
    folder = tmp_path / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    folder.mkdir()
    data, labels = [rows(2) for _ in range(6)], [[place, 9 - place] for place in range(6)]
    names = [*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]
    for name, values, classes in zip(names, data, labels, strict=True):
        if binary:
            (folder / f"{name}.bin").write_bytes(np.insert(values, 0, classes, axis=1).tobytes())
        else:
            (folder / name).write_bytes(pickle.dumps({b"data": values, b"labels": classes}, protocol=2))
    for root in (tmp_path, folder):
        images = load_dataset("cifar10", root)
        np.testing.assert_array_equal(stacked(images), np.concatenate(data).reshape(-1, 3, 32, 32))
        assert images.labels is not None
        assert images.labels.tolist() == np.concatenate(labels).tolist()
    (folder / f"test_batch{'.bin' if binary else ''}").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin: expected a file of the data set"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("cifar20", "coarse"), ("cifar100", "fine")])
def test_cifar100(tmp_path: Path, binary: bool, name: str, kind: str) -> None:
    folder = tmp_path / ("cifar-100-binary" if binary else "cifar-100-python")
    folder.mkdir()
    data = {"train": rows(3), "test": rows(2)}
    labels = {"coarse": {"train": [3, 3, 19], "test": [0, 3]}, "fine": {"train": [30, 31, 99], "test": [7, 30]}}
    for part, values in data.items():
        columns = [labels["coarse"][part], labels["fine"][part]]
        if binary:
            (folder / f"{part}.bin").write_bytes(np.concatenate([np.array(columns, np.uint8).T, values], 1).tobytes())
        else:
            batch = {b"data": values, b"coarse_labels": columns[0], b"fine_labels": columns[1]}
            (folder / part).write_bytes(pickle.dumps(batch, protocol=2))
    images = load_dataset(name, tmp_path)
    np.testing.assert_array_equal(stacked(images), np.concatenate(list(data.values())).reshape(-1, 3, 32, 32))
    assert images.classes is not None
    assert [int(images.classes[label]) for _, label in images] == [*labels[kind]["train"], *labels[kind]["test"]]


def test_a_pickle_that_calls_anything_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "train").write_bytes(pickle.dumps({b"data": Path("a")}, protocol=2))
    with pytest.raises(ValueError, match=r"train: no batch of CIFAR: expected arrays and numbers alone, got pathlib"):
        load_dataset("cifar100", tmp_path)


def test_binary_files_that_are_cut(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "train.bin").write_bytes(bytes(3000))
    with pytest.raises(ValueError, match=r"train\.bin: expected rows of 3074 bytes, got 3000 bytes"):
        load_dataset("cifar100", tmp_path)


def test_stl10(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    data = {part: RNG.integers(0, 256, (2, 3, 96, 96)).astype(np.uint8) for part in ("train", "test", "unlabeled")}
    for part, values in data.items():
        (folder / f"{part}_X.bin").write_bytes(values.transpose(0, 1, 3, 2).tobytes())  # column after column
    (folder / "train_y.bin").write_bytes(bytes([1, 10]))
    (folder / "test_y.bin").write_bytes(bytes([2, 1]))
    images = load_dataset("stl10", tmp_path)
    np.testing.assert_array_equal(stacked(images), np.concatenate([data["train"], data["test"]]))
    assert [label for _, label in images] == [0, 2, 1, 0]
    unlabelled = load_dataset("stl10-unlabelled", folder)
    assert unlabelled.labels is None
    np.testing.assert_array_equal(stacked(unlabelled), data["unlabeled"])
    (folder / "unlabeled_X.bin").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"unlabeled_X\.bin: expected images of 27648 bytes, got 100 bytes"):
        load_dataset("stl10-unlabelled", tmp_path)


@pytest.mark.parametrize(
    ("name", "synsets", "count"), [("imagenet10", IMAGENET_10, 10), ("imagenet-dogs", IMAGENET_DOGS, 15)]
)
def test_imagenet(tmp_path: Path, name: str, synsets: tuple[str, ...], count: int) -> None:
    assert len(set(synsets)) == count
    for synset in (*synsets, "n00000001"):  # one that is not of the set
        save(tmp_path / "train" / synset / f"{synset}_1.JPEG")
    for root in (tmp_path, tmp_path / "train"):
        images = load_dataset(name, root)
        assert images.names == [f"{synset}/{synset}_1.JPEG" for synset in synsets]
        assert images.classes == tuple(sorted(synsets))
        (tmp_path / "train" / synsets[1] / "notes.txt").touch()
        assert load_dataset(name, root).skipped == [(f"{synsets[1]}/notes.txt", "no image by its name")]
    (tmp_path / "train" / synsets[3] / f"{synsets[3]}_1.JPEG").unlink()
    (tmp_path / "train" / synsets[3]).rmdir()
    with pytest.raises(FileNotFoundError, match=f"expected {count} synset folders, found no {synsets[3]}"):
        load_dataset(name, tmp_path)


def test_stanford_dogs_are_another_data_set(tmp_path: Path) -> None:
    save(tmp_path / "n02085620-Chihuahua" / "n02085620_7.jpg")
    with pytest.raises(ValueError, match="looks like Stanford Dogs"):
        load_dataset("imagenet-dogs", tmp_path)


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for place in range(200):
        save(root / "train" / f"n{place:08}" / "images" / f"n{place:08}_0.JPEG")
    save(root / "val" / "images" / "val_0.JPEG")  # has no part in it
    images = load_dataset("tiny-imagenet", tmp_path)
    assert len(images) == 200
    assert images.labels is not None
    assert images.labels.tolist() == list(range(200))
    (root / "train" / "n00000000" / "images" / "n00000000_0.JPEG").unlink()
    with pytest.raises(ValueError, match="expected 200 synset folders, found 199"):
        load_dataset("tiny-imagenet", root)


@pytest.mark.parametrize("name", ["rsod", "uc-merced", "siri-whu", "aid", "d0-40", "chaoyang"])
def test_class_folders(tmp_path: Path, name: str) -> None:
    for file in ("train/beach/1.tif", "train/forest/1.tif", "test/beach/1.tif"):
        save(tmp_path / file)
    images = load_dataset(name, tmp_path)
    assert images.classes == ("beach", "forest")
    assert sorted(zip(images.names, [label for _, label in images], strict=True)) == [
        ("test/beach/1.tif", 0),
        ("train/beach/1.tif", 0),
        ("train/forest/1.tif", 1),
    ]
    (tmp_path / "test/beach/boxes.xml").touch()
    assert load_dataset(name, tmp_path).skipped == [("test/beach/boxes.xml", "no image by its name")]
    with pytest.raises(ValueError, match=r"test: expected a folder of images for each class, found beach alone"):
        load_dataset(name, tmp_path / "test")
    save(tmp_path / "loose.tif")
    with pytest.raises(ValueError, match=r"loose\.tif: expected every image in a folder of its class"):
        load_dataset(name, tmp_path)


def test_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name: expected one of cifar10, cifar20"):
        load_dataset("mnist", tmp_path)
    with pytest.raises(TypeError, match="root: expected a path, got NoneType"):
        load_dataset("cifar10", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name: expected text, got list"):
        load_dataset([], tmp_path)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="none: expected the folder of cifar10, found nothing"):
        load_dataset("cifar10", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="expected the folder cifar-10-batches-py or cifar-10-batches-bin"):
        load_dataset("cifar10", tmp_path)
    sets = {recipes.load(name).data.dataset for name in recipes.names()} - {"digits", "patches"}
    assert sets <= set(DATASETS)
