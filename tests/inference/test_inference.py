"""The loop over all images: order, parts, the test view, and labels that only evaluation gets."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from deepclust_ext.inference import Images, assign, embed, map_images
from deepclust_ext.methods import ClusterHeadMethod
from tests.methods.methodsamples import METHODS, NUM_CLUSTERS

IMAGES = torch.rand(11, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Plain(Dataset[Any]):
    """The images without anything else."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Tensor:
        return IMAGES[index]


def labelled() -> TensorDataset:
    return TensorDataset(IMAGES, torch.arange(11) * 2)


@pytest.mark.parametrize("data", [Plain(), labelled()], ids=["images", "tuples"])
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
    assert len(map_images(lambda images: (images,), labelled())) == 1
    images, labels = map_images(lambda images: (images,), labelled(), batch_size=4, with_labels=True)
    assert torch.equal(images, IMAGES)
    assert labels.tolist() == list(range(0, 22, 2))
    assert Images(labelled())[3][1] == 3  # its place, not its label


def test_the_test_view_comes_first() -> None:
    (seen,) = map_images(lambda images: (images,), Plain(), test_view=lambda images: images[..., :4], batch_size=4)
    assert torch.equal(seen, IMAGES[..., :4])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_embeds_and_assigns(name: str) -> None:
    method = METHODS[name].method()
    torch.testing.assert_close(embed(method, labelled(), batch_size=4), method.embed(IMAGES))
    flipped = embed(method, labelled(), test_view=lambda images: images.flip(3))
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
        ([torch.zeros(1, 8, 8), {}], TypeError, r"data, image 1: expected a tensor \(C, H, W\), got dict"),
        ([()], TypeError, "data, image 0: expected a tensor .*, got tuple"),
        ([torch.zeros(8, 8)], ValueError, r"data, image 0: expected shape \(C, H, W\), got \(8, 8\)"),
        (
            [torch.zeros(1, 8, 8), torch.zeros(1, 9, 8)],
            ValueError,
            r"one shape and dtype in a batch, got \(1, 8, 8\) of torch.float32 and \(1, 9, 8\) of torch.float32",
        ),
        (
            [torch.zeros(1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)],
            ValueError,
            "of torch.float32 and .* of torch.uint8",
        ),
        (
            [torch.zeros(1, 8, 8)] * 3 + [torch.full((1, 8, 8), float("nan"))],
            ValueError,
            "data, image 3: expected finite pixels, got NaN or infinity",
        ),
        (None, TypeError, "data: expected a map-style data set, with items and a length, got NoneType"),
    ],
)
def test_images_that_are_none_are_named(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        map_images(lambda images: (images,), data, batch_size=2)
