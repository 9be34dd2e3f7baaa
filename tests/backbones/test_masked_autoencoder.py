"""The vision transformer and its decoder against their formulas in float64; masks, precision, memory and programs."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from deepclust_ext.backbones.masked_autoencoder import MaskedDecoder, VisionTransformer, grid_positions, random_masks
from deepclust_ext.backbones.transformer import Transformer
from deepclust_ext.methods.shared import InferenceNetwork
from tests.backbones.plaintransformer import (
    CHANNELS,
    HEADS,
    PATCH,
    PATCHES,
    SIZE,
    WIDTH,
    assert_same,
    images,
    plain_decoder,
    plain_encoder,
    plain_patch,
    plain_position,
    small_decoder,
    small_encoder,
)


def test_the_paper_s_networks_have_the_numbers_it_says() -> None:
    def block(width: int) -> int:
        norms, attention = 4 * width, 3 * width * width + 3 * width + width * width + width
        return norms + attention + 4 * width * width + 4 * width + 4 * width * width + width

    encoder, decoder = VisionTransformer(), MaskedDecoder()
    positions, last_norm, pixels = 197, 2, 3 * 16 * 16
    expected = (pixels + 1) * 384 + 384 + positions * 384 + 6 * block(384) + last_norm * 384
    assert sum(x.numel() for x in encoder.state_dict().values()) == expected == 11_018_880
    expected = (384 + 1) * 512 + 512 + positions * 512 + 8 * block(512) + last_norm * 512 + (512 + 1) * pixels
    assert sum(x.numel() for x in decoder.state_dict().values()) == expected == 25_912_576
    assert (encoder.num_patches, decoder.num_patches) == (196, 196)


@pytest.mark.parametrize(("side", "width"), [(3, 8), (2, 4), (1, 12), (14, 20)])
def test_positions_are_sines_and_cosines_of_column_and_row(side: int, width: int) -> None:
    expected = [[0.0] * width] + [plain_position(place, side, width) for place in range(side**2)]
    positions = grid_positions(side, width)
    assert positions.dtype == torch.float64
    torch.testing.assert_close(positions, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)


def test_each_network_has_the_positions_of_its_width() -> None:
    for network, width in (
        (VisionTransformer(SIZE, PATCH, WIDTH, 1, 2), WIDTH),
        (MaskedDecoder(SIZE, PATCH, 4, 12, 1, 3), 12),
    ):
        assert torch.equal(network.positions, grid_positions(3, width).float())
        assert "positions" not in dict(network.named_parameters())


def test_patches_are_read_by_row_then_column_then_channel() -> None:
    network, batch = small_encoder(), images()
    expected = torch.stack([torch.stack([plain_patch(image, place) for place in range(PATCHES)]) for image in batch])
    assert torch.equal(network.patches(batch), expected)
    index = torch.tensor([[8, 1], [0, 0], [3, 5]])
    assert torch.equal(network.patches(batch, index), torch.stack([x[i] for x, i in zip(expected, index, strict=True)]))


def test_the_first_layer_is_a_convolution() -> None:
    network, batch = small_encoder(), images()
    kernel = network.embedding.weight.view(WIDTH, PATCH, PATCH, CHANNELS).permute(0, 3, 1, 2)
    expected = conv2d(batch, kernel, network.embedding.bias, stride=PATCH).flatten(2).transpose(1, 2)
    assert_same(network.embedding(network.patches(batch)), expected)


def test_the_encoder_is_the_formula() -> None:
    network, batch = small_encoder(), images()
    keep = torch.tensor([[0, 4, 8], [7, 2, 3], [1, 2, 3]])
    tokens = network.encode(batch, keep)
    assert tokens.shape == (3, 4, WIDTH)
    assert_same(tokens, torch.stack([plain_encoder(network, x, k.tolist()) for x, k in zip(batch, keep, strict=True)]))
    assert_same(network(batch, keep), tokens[:, 0])
    everything = network.encode(batch)
    assert_same(everything, torch.stack([plain_encoder(network, x, list(range(PATCHES))) for x in batch]))
    assert_same(network(batch), everything[:, 0])


def test_no_mask_is_a_mask_that_keeps_all_in_order() -> None:
    network, batch = small_encoder(), images()
    keep, hidden = random_masks(3, PATCHES, PATCHES)
    assert torch.equal(keep, torch.arange(PATCHES).expand(3, -1))
    assert hidden.shape == (3, 0)
    assert torch.equal(network.encode(batch, keep), network.encode(batch))


@pytest.mark.parametrize("kept", [1, 4, PATCHES])
def test_the_decoder_is_the_formula(kept: int) -> None:
    network = small_decoder()
    keep, hidden = (mask.flip(1) for mask in random_masks(3, PATCHES, kept))  # any order will do
    tokens = torch.randn(3, 1 + kept, WIDTH, dtype=torch.float64)
    expected = torch.stack([plain_decoder(network, t, k.tolist()) for t, k in zip(tokens, keep, strict=True)])
    predicted = network(tokens, keep)
    assert predicted.shape == (3, PATCHES, PATCH**2 * CHANNELS)
    assert_same(predicted, expected)
    if kept < PATCHES:
        assert_same(network(tokens, keep, hidden), torch.stack([x[h] for x, h in zip(expected, hidden, strict=True)]))


def test_the_decoder_puts_each_token_at_its_place() -> None:
    network, (keep, _) = small_decoder(), random_masks(3, PATCHES, 5)
    tokens = torch.randn(3, 6, WIDTH, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = torch.cat([tokens[:, :1], tokens[:, 1 + order]], dim=1)
    assert_same(network(permuted, keep[:, order]), network(tokens, keep))
    assert not torch.allclose(network(permuted, keep), network(tokens, keep))


def test_fewer_tokens_from_the_last_block_give_the_same_gradients() -> None:
    keep, hidden = random_masks(3, PATCHES, 5)
    batch, gradients = images(), []
    for fewer in (True, False):
        encoder, decoder = small_encoder(), small_decoder()
        tokens = encoder.encode(batch, keep)
        predicted = (
            decoder(tokens, keep, hidden)
            if fewer
            else decoder(tokens, keep).gather(1, hidden.unsqueeze(2).expand(-1, -1, PATCH**2 * CHANNELS))
        )
        class_tokens = encoder(batch) if fewer else encoder.encode(batch)[:, 0]
        (predicted.square().mean() + class_tokens.exp().mean()).backward()
        parameters = [*encoder.parameters(), *decoder.parameters()]
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)
        gradients.append([parameter.grad for parameter in parameters])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_gradient_by_differences() -> None:
    encoder = VisionTransformer(4, 2, 4, 1, 2, 1, 1).double()
    decoder = MaskedDecoder(4, 2, 4, 4, 1, 1, 1, 1).double()
    keep, hidden = torch.tensor([[0, 3]]), torch.tensor([[1, 2]])
    pixels = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: decoder(encoder.encode(x, keep), keep, hidden), pixels)


def test_weights_begin_as_they_should() -> None:
    encoder, decoder = VisionTransformer(32, 4, 64, 2, 4), MaskedDecoder(32, 4, 64, 96, 2, 4)
    for network, token in ((encoder, encoder.class_token), (decoder, decoder.mask_token)):
        assert 0.012 < float(token.detach().std()) < 0.028
        assert abs(float(token.detach().mean())) < 0.01
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                bound = math.sqrt(6 / sum(layer.weight.shape))
                assert 0.99 * bound < float(layer.weight.detach().abs().max()) <= bound
                assert not layer.bias.any()


# Masks.


def test_each_patch_is_kept_equally_often_and_images_differ() -> None:
    keep, hidden = random_masks(4000, PATCHES, 3)
    both = torch.cat([keep, hidden], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(PATCHES).expand(4000, -1))
    assert torch.equal(keep, keep.sort(dim=1).values)
    assert torch.equal(hidden, hidden.sort(dim=1).values)
    counts = keep.flatten().bincount(minlength=PATCHES)
    # The standard deviation of a count is (4000 x 1/3 x 2/3)^0.5 = 30.
    assert (counts - 4000 / 3).abs().max() < 120
    # All sets of 3 of 9 patches, 84, about 48 times each.
    sets = (keep * torch.tensor([81, 9, 1])).sum(dim=1).unique(return_counts=True)[1]
    assert len(sets) == 84
    assert sets.min() > 18


def test_a_generator_gives_its_masks() -> None:
    first, again = (random_masks(5, 16, 8, torch.Generator().manual_seed(3)) for _ in range(2))
    other = random_masks(5, 16, 8, torch.Generator().manual_seed(4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    generator = torch.Generator().manual_seed(3)
    assert not torch.equal(random_masks(5, 16, 8, generator)[0], random_masks(5, 16, 8, generator)[0])
    torch.manual_seed(3)
    assert torch.equal(random_masks(5, 16, 8)[0], first[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_are_the_same_on_every_device() -> None:
    masks = [random_masks(64, 196, 98, torch.Generator().manual_seed(0), device) for device in ("cpu", "cuda")]
    assert all(mask.is_cuda for mask in masks[1])
    assert all(torch.equal(here, there.cpu()) for here, there in zip(*masks, strict=True))


# Precision, memory and programs.


def trained_loss(encoder: VisionTransformer, decoder: MaskedDecoder, batch: Tensor) -> Tensor:
    keep, hidden = random_masks(len(batch), PATCHES, 5, torch.Generator().manual_seed(0))
    tokens = encoder.encode(batch, keep)
    loss: Tensor = decoder(tokens, keep, hidden).square().mean() + tokens[:, 0].square().sum()
    return loss


def counted_calls(networks: list[nn.Module]) -> list[int]:
    """Return a list that counts the calls of each network."""
    counts = [0] * len(networks)

    def count(place: int, *_: Any) -> None:
        counts[place] += 1

    for place, network in enumerate(networks):
        network.register_forward_pre_hook(partial(count, place))
    return counts


def test_checkpointing_gives_the_same_loss_and_gradients_and_computes_blocks_twice() -> None:
    batch, results = images(), []
    for checkpointing in (False, True):
        networks = small_encoder(checkpointing=checkpointing), small_decoder(checkpointing=checkpointing)
        calls = counted_calls([block for network in networks for block in network.transformer.blocks])
        loss = trained_loss(*networks, batch)
        assert calls == [1] * 4
        loss.backward()
        assert calls == [2 if checkpointing else 1] * 4
        results.append([loss, *(parameter.grad for network in networks for parameter in network.parameters())])
        with torch.no_grad():
            assert networks[0](batch).isfinite().all()
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_autocast_to_bfloat16_is_close(checkpointing: bool) -> None:
    networks = small_encoder(checkpointing=checkpointing).float(), small_decoder(checkpointing=checkpointing).float()
    batch = images().float()
    truth = trained_loss(*networks, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = trained_loss(*networks, batch)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, truth, rtol=0.02, atol=0)
    assert loss != truth
    assert all(p.grad is not None and p.grad.isfinite().all() for network in networks for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_of_half_precision(dtype: torch.dtype) -> None:
    networks = small_encoder().to(dtype), small_decoder().to(dtype)
    batch = images()
    truth = trained_loss(small_encoder(), small_decoder(), batch)
    loss = trained_loss(*networks, batch.to(dtype))
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.double(), truth, rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_the_encoder_becomes_a_program_of_torch_s_operators() -> None:
    network = InferenceNetwork(small_encoder().float(), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 4)).eval()
    batch = images(5).float()
    with torch.no_grad():
        shapes = {"images": {0: torch.export.Dim("batch")}}
        program = torch.export.export(network, (batch[:2],), dynamic_shapes=shapes)
        for count in (1, 5):
            torch.testing.assert_close(program.module()(batch[:count]), network(batch[:count]))
    called = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    assert {target.namespace for target in called} == {"aten"}


def test_a_transformer_gives_the_tokens_that_are_wanted() -> None:
    network = Transformer(WIDTH, 2, HEADS, 2, checkpointing=False).double()
    tokens = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    assert_same(network(tokens, lambda x: x[:, 1:4]), network(tokens)[:, 1:4])
