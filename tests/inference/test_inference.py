"""The loop over all images: order, parts, the test view, and labels that only evaluation gets."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from deepclust_ext.data import Digits
from deepclust_ext.inference import IndexedImages, assign, embed, map_images
from deepclust_ext.methods import ClusterHeadMethod
from tests.methods.methodsamples import METHODS, NUM_CLUSTERS

IMAGES = torch.rand(11, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Plain(Dataset[Any]):
    """The images without anything else."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Tensor:
        return IMAGES[index]


def labeled() -> TensorDataset:
    return TensorDataset(IMAGES, torch.arange(11) * 2)


@pytest.mark.parametrize("data", [Plain(), labeled()], ids=["images", "tuples"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_parts_come_in_the_order_of_the_data(data: Dataset[Any], num_workers: int) -> None:
    sizes = []

    def function(images: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(images))
        return images.sum(dim=(1, 2, 3)), images[:, 0, 0]

    sums, rows = map_images(function, data, batch_size=4, num_workers=num_workers)
    assert sizes == [4, 4, 3]
    torch.testing.assert_close(sums, IMAGES.sum(dim=(1, 2, 3)))
    assert torch.equal(rows, IMAGES[:, 0, 0])


def test_labels_come_only_when_asked_for() -> None:
    assert len(map_images(lambda images: (images,), labeled())) == 1
    images, labels = map_images(lambda images: (images,), labeled(), batch_size=4, with_labels=True)
    assert torch.equal(images, IMAGES)
    assert labels.tolist() == list(range(0, 22, 2))
    assert IndexedImages(labeled())[3][1] == 3  # its place, not its label


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "^batch_size: expected at least 1, got 0$"),
        ({"batch_size": 1.5}, TypeError, "^batch_size: expected an integer, got 1.5$"),
        ({"batch_size": None}, TypeError, "^batch_size: expected an integer, got None$"),
        ({"batch_size": True}, TypeError, "^batch_size: expected an integer, got True$"),
        ({"test_view": 3}, TypeError, "^test_view: expected a function of a batch or None, got int$"),
        ({"num_workers": -1}, ValueError, "^num_workers: expected at least 0, got -1$"),
        ({"num_workers": "2"}, TypeError, "^num_workers: expected an integer, got '2'$"),
    ],
)
def test_numbers_are_checked_by_name(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    clc = METHODS["clc"].method()
    for function in (partial(embed, clc), partial(assign, clc), partial(map_images, lambda images: (images,))):
        with pytest.raises(error, match=message):
            function(Plain(), **settings)
    (seen,) = map_images(lambda images: (images,), Plain(), batch_size=np.int64(4))  # type: ignore[arg-type]
    assert torch.equal(seen, IMAGES)


PIXELS = (IMAGES * 255).to(torch.uint8)


def collated(source: IndexedImages, items: Any) -> tuple[Tensor, Tensor]:
    images, places = source.collate(items)
    assert isinstance(images, Tensor)
    return images, places


@pytest.mark.parametrize(
    "data",
    [
        labeled(),
        TensorDataset(PIXELS),
        TensorDataset(IMAGES.contiguous(memory_format=torch.channels_last)),
        TensorDataset(IMAGES[:1].expand(11, -1, -1, -1)),
        Digits(),
        Subset(Subset(labeled(), np.arange(10)[::-1]), [9, -1, 3, 0, 5]),  # type: ignore[arg-type]
        TensorDataset(IMAGES, *[torch.arange(11)] * 3),
    ],
)
def test_a_batch_at_once_is_that_of_its_items(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, places = IndexedImages(data), [3, 1, 1, 0]
    expected, numbers = collated(source, [source[place] for place in places])
    monkeypatch.setattr(IndexedImages, "__getitem__", lambda self, index: pytest.fail("one by one"))
    images, found = collated(source, source.__getitems__(places))
    assert torch.equal(images, expected)
    assert (images.dtype, images.stride()) == (expected.dtype, expected.stride())
    assert torch.equal(found, numbers)
    images.zero_()
    assert collated(source, source.__getitems__(places))[0].any()  # a copy


class Flipped(TensorDataset):
    """What a data set makes of its tensors is not known."""

    def __getitem__(self, index: int) -> Any:
        return IMAGES[index].flip(2)


class Broken(Plain):
    """A data set whose batches fail where one of its images does."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __getitem__(self, index: int) -> Tensor:
        if index == 2:
            raise OSError("cut off")
        return IMAGES[index]

    def images_at(self, indices: list[int]) -> list[Tensor]:
        self.calls.append(indices)
        return [self[index] for index in indices]


class Batched(Plain):
    """A data set whose batches would show."""

    def images_at(self, indices: list[int]) -> Tensor:
        pytest.fail("not asked for")


class Negative(Batched):
    """What a subclass makes of an item counts."""

    def __getitem__(self, index: int) -> Tensor:
        return -IMAGES[index]


class Around:
    """A data set that has everything else from another."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Tensor:
        return -IMAGES[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(Batched(), name)


@pytest.mark.parametrize("data", [Negative(), Around()])
def test_a_batch_is_no_way_around_an_item(data: Any) -> None:
    source = IndexedImages(data)
    assert torch.equal(collated(source, source.__getitems__([4, 1]))[0], -IMAGES[[4, 1]])


def test_a_picture_of_16_bits() -> None:
    values = np.array([[0, 1024], [32768, 65535]], np.uint16)
    image, _ = IndexedImages([Image.fromarray(values)])[0]  # type: ignore[arg-type]
    assert image.dtype == torch.uint16
    assert np.array_equal(image[0].numpy(), values)


def test_a_batch_one_by_one_where_that_is_the_only_way() -> None:
    source = IndexedImages(Flipped(IMAGES))
    assert torch.equal(collated(source, source.__getitems__([4, 2]))[0], IMAGES[[4, 2]].flip(3))
    data = Broken()
    source = IndexedImages(data)
    assert torch.equal(collated(source, source.__getitems__([4, 1]))[0], IMAGES[[4, 1]])
    with pytest.raises(ValueError, match="data, image 2: expected an image that can be read, got OSError: cut off"):
        source.__getitems__([4, 2])
    assert data.calls == [[4, 1], [4, 2]]
    with pytest.raises(ValueError, match=r"data, image 0: expected shape \(C, H, W\), got \(8, 8\)"):
        IndexedImages(TensorDataset(IMAGES[:, 0])).__getitems__([0])


def test_the_test_view_comes_first() -> None:
    (seen,) = map_images(lambda images: (images,), Plain(), test_view=lambda images: images[..., :4], batch_size=4)
    assert torch.equal(seen, IMAGES[..., :4])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_embeds_and_assigns(name: str) -> None:
    method = METHODS[name].method()
    torch.testing.assert_close(embed(method, labeled(), batch_size=4), method.embed(IMAGES))
    flipped = embed(method, labeled(), test_view=lambda images: images.flip(3))
    torch.testing.assert_close(flipped, method.embed(IMAGES.flip(3)))
    if isinstance(method, ClusterHeadMethod):
        shares = assign(method, Plain(), batch_size=4, test_view=lambda images: images.flip(3))
        assert shares.shape == (11, shares.shape[1])
        assert shares.shape[1] >= NUM_CLUSTERS
        torch.testing.assert_close(shares, method.assign(IMAGES.flip(3)))
    assert method.training


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([torch.zeros(1, 8, 8), {}], TypeError, r"data, image 1: expected a tensor or array .*, got dict$"),
        ([()], TypeError, "data, image 0: expected a tensor .*, got tuple"),
        ([torch.zeros(8, 8)], ValueError, r"data, image 0: expected shape \(C, H, W\), got \(8, 8\)"),
        (
            [torch.zeros(1, 8, 8), torch.zeros(1, 9, 8)],
            ValueError,
            r"image 1: expected the shape and dtype of data, image 0 .*, \(1, 8, 8\) of torch.float32, got \(1, 9, 8\)",
        ),
        (
            [torch.zeros(1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)],
            ValueError,
            "of torch.float32, got .* of torch.uint8",
        ),
        (
            [torch.zeros(1, 8, 8)] * 3 + [torch.full((1, 8, 8), float("nan"))],
            ValueError,
            "data, image 3: expected finite pixels, got NaN or infinity",
        ),
        ([{"image": 1, "label": 2}], TypeError, "data, image 0: .* got dict with the keys image, label"),
        (["cat.png"], TypeError, "data, image 0: expected a tensor .*, got str"),
        (
            [np.array(["a"])],
            ValueError,
            "data, image 0: expected an image that can be read, got TypeError: can't convert",
        ),
        ([], ValueError, "data: expected at least one image, got none"),
        (None, TypeError, "data: expected a map-style data set, with items and a length, got NoneType"),
    ],
)
def test_images_that_are_none_are_named(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        map_images(lambda images: (images,), data, batch_size=2)


def test_arrays_and_pictures_become_tensors() -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    pictures = {
        "RGB": image.fromarray(pixels),
        "RGBA": image.fromarray(np.concatenate([pixels, pixels[..., :1]], axis=2)),
        "L": image.fromarray(pixels[..., 0]),
        "P": image.fromarray(pixels).quantize(4),  # an index of colors, which are what counts
        "1": image.fromarray(pixels[..., 0] > 4),
    }
    expected = {
        "RGB": pixels.transpose(2, 0, 1),
        "RGBA": np.concatenate([pixels, pixels[..., :1]], axis=2).transpose(2, 0, 1),
        "L": pixels[None, ..., 0],
        "P": np.array(pictures["P"].convert("RGB")).transpose(2, 0, 1),
        "1": 255 * (pixels[None, ..., 0] > 4).astype(np.uint8),
    }
    for mode, picture in pictures.items():
        assert picture.mode == mode
        for item in (picture, (picture, 3)):
            found, place = IndexedImages([item])[0]  # type: ignore[arg-type]
            assert (found.dtype, place) == (torch.uint8, 0)
            assert found.tolist() == expected[mode].tolist()
    with pytest.raises(
        ValueError, match=r"data, image 0: .* a picture of the mode CMYK, known are L, .* return an array"
    ):
        IndexedImages([pictures["RGB"].convert("CMYK")])[0]  # type: ignore[arg-type]
    array = pixels.transpose(2, 0, 1)[:, ::-1].astype(np.float64) / 255  # strides below 0
    array.flags.writeable = False
    found, _ = IndexedImages([array])[0]  # type: ignore[arg-type]
    assert found.dtype == torch.float64
    assert found.tolist() == array.tolist()


class Files(Dataset[Any]):
    """Pictures of files, as torchvision's ImageFolder has them."""

    def __init__(self, paths: list[Path]) -> None:
        self.samples = [(str(path), 0) for path in paths]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.samples[index][0]) as picture:
            return picture.copy(), self.samples[index][1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_is_named(tmp_path: Path, num_workers: int) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    for path in paths:
        image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 30), dtype=np.uint8)).save(path)
    data = Files(paths)

    def mean(images: Tensor) -> tuple[Tensor]:
        return (images.float().mean(dim=(1, 2, 3)),)

    assert len(map_images(mean, data, num_workers=num_workers)[0]) == 4
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"data, image 2 \(.*c.png\): expected an image that can be read, got OSError"):
        map_images(mean, data, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"data, image 1 \(.*c.png\): expected an image that can be read"):
        map_images(mean, Subset(Subset(data, [3, 2, 0]), [0, 1]), num_workers=num_workers)
    image.fromarray(np.zeros((200, 300), dtype=np.uint8)).save(paths[2])
    message = (
        r"data, image 2 \(.*c.png\): expected the shape and dtype of data, image 0 \(.*a.png\) .*, got \(1, 200, 300\)"
    )
    with pytest.raises(ValueError, match=message):
        map_images(mean, data, num_workers=num_workers)
    paths[2].unlink()
    with pytest.raises(ValueError, match=r"image 2 \(.*c.png\): expected an image .*, got FileNotFoundError"):
        map_images(mean, data, num_workers=num_workers)


def test_images_are_loaded_on_the_cpu_whatever_the_default_device() -> None:
    class Drawn(Plain):
        def __getitem__(self, index: int) -> Any:
            return torch.full((1, 8, 8), float(index)), index  # names no device

    with torch.device("meta"):  # stands for a GPU
        images, labels = map_images(lambda images: (images,), Drawn(), with_labels=True)
    assert images[:, 0, 0, 0].tolist() == labels.tolist() == list(range(11))


def test_the_class_is_the_second_entry() -> None:
    images = [torch.full((1, 8, 8), float(place)) for place in range(4)]
    for labels, expected in (
        ([3, 1, 3, 1], [3, 1, 3, 1]),
        ([torch.tensor(3), torch.tensor([1]), np.int64(3), np.array([1])], [3, 1, 3, 1]),
        ([3.0, 1.0, np.float32(3), torch.tensor([[1.0]])], [3, 1, 3, 1]),
        (["dog", "cat", "dog", "cat"], [1, 0, 1, 0]),
        ([-1, 300, True, 2], [-1, 300, 1, 2]),
    ):
        data: Any = [(image, label, "cat.png") for image, label in zip(images, labels, strict=True)]
        found, numbers = map_images(lambda images: (images,), data, batch_size=3, with_labels=True)
        assert torch.equal(found, torch.stack(images))
        assert numbers.dtype == torch.int64
        assert numbers.tolist() == expected


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.zeros(1, 8, 8), "expected an image and its class, got Tensor without"),
        ((torch.zeros(1, 8, 8),), "expected an image and its class, got tuple without"),
        ({"image": 0, "label": 1}, "expected an image and its class, got dict without"),
        ((torch.zeros(1, 8, 8), torch.tensor([0, 1, 0])), "expected a class as one integer or a name, got tensor"),
        ((torch.zeros(1, 8, 8), 0.5), "expected a class as one integer or a name, got 0.5 of type float"),
        ((torch.zeros(1, 8, 8), None), "expected a class as one integer or a name, got None"),
    ],
)
def test_what_is_no_class_is_named(item: Any, message: str) -> None:
    data: Any = [(torch.zeros(1, 8, 8), 0), item]
    with pytest.raises(TypeError, match=f"data, image 1: {message}"):
        map_images(lambda images: (images,), data, with_labels=True)


def test_labelled_images_are_checked_like_others() -> None:
    data: Any = [(torch.zeros(1, 8, 8), 0), (torch.zeros(8, 8), 1)]
    with pytest.raises(ValueError, match=r"data, image 1: expected shape \(C, H, W\), got \(8, 8\)"):
        map_images(lambda images: (images,), data, with_labels=True)
