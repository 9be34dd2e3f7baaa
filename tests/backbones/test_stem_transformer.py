"""The transformer with a stem of convolutions: its tokens, what a patch knows, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from deepclust_ext.backbones.masked_autoencoder import VisionTransformer
from deepclust_ext.backbones.stem_transformer import StemTransformer
from deepclust_ext.methods.shared import InferenceNetwork


def network() -> StemTransformer:
    torch.manual_seed(0)
    return StemTransformer(16, 4, 8, 2, 2, 2, 2).double()


def images() -> Tensor:
    return torch.randn(3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain_stem(planes: Tensor, stem: Any) -> Tensor:
    """Return the planes after two convolutions with batch normalization of what is in the batch."""
    for convolution, norm in ((stem[0], stem[1]), (stem[3], stem[4])):
        planes = conv2d(planes, convolution.weight, stride=2, padding=1)
        mean, variance = planes.mean(dim=(0, 2, 3), keepdim=True), planes.var(dim=(0, 2, 3), correction=0, keepdim=True)
        planes = (planes - mean) / (variance + 1e-5).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        planes = planes.clamp(min=0)
    return planes


@pytest.mark.parametrize("keep", [None, torch.tensor([[0, 5, 15], [3, 2, 1], [7, 8, 9]])])
def test_tokens_come_from_the_pixels_of_the_stem(keep: Tensor | None) -> None:
    ours = network()
    planes = plain_stem(images(), ours.stem)
    rows = torch.stack([planes[:, :, place // 4, place % 4] for place in range(16)], dim=1)
    tokens = rows @ ours.embedding.weight.T + ours.embedding.bias + ours.positions[1:]
    if keep is not None:
        tokens = torch.stack([token[place] for token, place in zip(tokens, keep, strict=True)])
    expected = ours.transformer(torch.cat([ours.class_token.expand(3, 1, -1), tokens], dim=1))
    torch.testing.assert_close(ours.encode(images(), keep), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours(images(), keep), expected[:, 0], rtol=1e-10, atol=1e-10)


def test_patches_are_those_of_any_vision_transformer() -> None:
    plain = VisionTransformer(16, 4, 8, 2, 2, 2, 2)
    assert torch.equal(network().patches(images()), plain.patches(images()))


def test_a_patch_knows_its_neighbors_above_and_to_the_left() -> None:
    ours = StemTransformer(32, 8, 8, 1, 2, 2, 1).double().eval()
    pixels = torch.randn(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    ours.stem(pixels)[0, :, 1, 2].sum().backward()
    assert pixels.grad is not None
    seen = pixels.grad[0, 0] != 0
    assert seen.any(dim=1).nonzero().flatten().tolist() == list(range(1, 16))  # its own rows are 8 to 15
    assert seen.any(dim=0).nonzero().flatten().tolist() == list(range(9, 24))


def test_it_becomes_a_program_of_torch_s_operators() -> None:
    ours = InferenceNetwork(network().float(), nn.Linear(8, 3), nn.Linear(8, 4)).eval()
    batch = images().float()
    with torch.no_grad():
        program = torch.export.export(ours, (batch[:2],), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
        torch.testing.assert_close(program.module()(batch), ours(batch))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"patch_size": 3}, ValueError, "patch_size: expected a power of two, got 3"),
        ({"patch_size": 5}, ValueError, "patch_size: expected a divisor of image_size, which is 12, got 5"),
        ({"channels": 0}, ValueError, "channels: expected at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], error: type[Exception], message: str) -> None:
    defaults = {"image_size": 12, "patch_size": 4, "width": 8, "depth": 1, "heads": 1, "mlp_ratio": 1, "channels": 1}
    with pytest.raises(error, match=f"^{message}$"):
        StemTransformer(**defaults | options)


def test_images_and_places_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 2, 16, 16\), got \(3, 2, 16, 8\)"):
        network()(images()[..., :8])
    with pytest.raises(TypeError, match=r"images: expected a floating dtype, got torch.uint8"):
        network()(images().byte())
    with pytest.raises(ValueError, match=r"keep: expected shape \(3, 1 to 16\), got \(2, 1\)"):
        network()(images(), torch.zeros(2, 1).long())
