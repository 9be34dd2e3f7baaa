"""What the vision transformer, its decoder and the masks refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext.backbones.masked_autoencoder import MaskedDecoder, VisionTransformer, random_masks
from tests.backbones.plaintransformer import WIDTH, images, small_decoder, small_encoder


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"patch_size": 5}, ValueError, "patch_size: expected a divisor of image_size, which is 32, got 5"),
        ({"patch_size": 0}, ValueError, "patch_size: expected at least 1, got 0"),
        ({"image_size": 32.0}, TypeError, "image_size: expected an integer, got 32.0"),
        (
            {"width": 10, "heads": 2},
            ValueError,
            "width: expected a multiple of 4, for sines and cosines of two places, got 10",
        ),
        ({"heads": 5}, ValueError, "heads: expected a divisor of width, which is 16, got 5"),
        ({"depth": 0}, ValueError, "depth: expected at least 1, got 0"),
        ({"mlp_ratio": 0}, ValueError, "mlp_ratio: expected at least 1, got 0"),
        ({"mlp_ratio": True}, TypeError, "mlp_ratio: expected an integer, got True"),
        ({"channels": 0}, ValueError, "channels: expected at least 1, got 0"),
        ({"checkpointing": 1}, TypeError, "checkpointing: expected True or False, got 1"),
    ],
)
@pytest.mark.parametrize("network", [VisionTransformer, MaskedDecoder])
def test_errors_name_the_argument(network: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        network(**{"image_size": 32, "patch_size": 4, "width": 16, "depth": 1, "heads": 4} | options)


def test_the_decoder_names_the_encoder_s_width() -> None:
    with pytest.raises(ValueError, match="^encoder_width: expected at least 1, got 0$"):
        MaskedDecoder(32, 4, 0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 2, 12, 8), r"images: expected shape \(B, 2, 12, 12\), got \(3, 2, 12, 8\)"),
        ((3, 2, 16, 16), r"images: expected shape \(B, 2, 12, 12\), got \(3, 2, 16, 16\)"),
        ((3, 1, 12, 12), r"images: expected shape \(B, 2, 12, 12\), got \(3, 1, 12, 12\)"),
        ((2, 12, 12), r"images: expected shape \(B, 2, 12, 12\), got \(2, 12, 12\)"),
    ],
)
def test_images_of_another_shape_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_encoder()(torch.zeros(shape, dtype=torch.float64))


def test_images_of_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"images: expected a floating dtype, got torch.uint8"):
        small_encoder()(images().byte())


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int32), TypeError, "expected dtype torch.int64, got torch.int32"),
        (torch.zeros(2, 2).long(), ValueError, r"expected shape \(3, 1 to 9\), got \(2, 2\)"),
        (torch.zeros(3).long(), ValueError, r"expected shape \(3, 1 to 9\), got \(3,\)"),
        (torch.zeros(3, 0).long(), ValueError, r"expected shape \(3, 1 to 9\), got \(3, 0\)"),
        (torch.zeros(3, 10).long(), ValueError, r"expected shape \(3, 1 to 9\), got \(3, 10\)"),
    ],
)
def test_places_that_do_not_fit_are_refused(index: Tensor, error: type[Exception], message: str) -> None:
    encoder, decoder = small_encoder(), small_decoder()
    tokens, keep = torch.zeros(3, 3, WIDTH, dtype=torch.float64), torch.zeros(3, 2).long()
    with pytest.raises(error, match=f"^keep: {message}$"):
        encoder(images(), index)
    with pytest.raises(error, match=f"^index: {message}$"):
        encoder.patches(images(), index)
    with pytest.raises(error, match=f"^keep: {message}$"):
        decoder(tokens, index)
    with pytest.raises(error, match=f"^hidden: {message}$"):
        decoder(tokens, keep, index)


def test_tokens_that_do_not_fit_are_refused() -> None:
    keep = torch.zeros(3, 2).long()
    message = r"tokens: expected shape \(3, 3, 8\) for 2 kept, got \(3, 4, 8\)"
    with pytest.raises(ValueError, match=message):
        small_decoder()(torch.zeros(3, 4, WIDTH, dtype=torch.float64), keep)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((-1, 9, 3), "batch: expected at least 0, got -1"),
        ((2, 0, 1), "num_patches: expected at least 1, got 0"),
        ((2, 9, 0), "kept: expected 1 to 9, got 0"),
        ((2, 9, 10), "kept: expected 1 to 9, got 10"),
    ],
)
def test_masks_that_cannot_be_are_refused(numbers: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        random_masks(*numbers)
