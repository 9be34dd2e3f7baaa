"""The vision transformer of PICI, which sees some patches of an image, and its decoder, which predicts the others."""

import torch
from torch import Tensor, nn

from deepclust_ext.backbones.transformer import Transformer
from deepclust_ext.ops._checks import check_integer, check_size

STD = 0.02  # of the tokens that are learned


class VisionTransformer(nn.Module):
    """Map images to their class tokens, from all of their patches or some.

    A patch is ``patch_size`` x ``patch_size`` pixels. Each one goes through a linear layer, which is a convolution of
    that size and stride, and its fixed position is added, see :func:`grid_positions`. A learned class token is put
    before them. Then come ``depth`` blocks and a last norm. A block has a norm before the attention and one before the
    perceptron, whose hidden layer is ``mlp_ratio`` times as wide. There is no dropout.

    Weights of linear layers are drawn by Xavier's uniform rule, their biases are 0, and the class token is drawn from
    N(0, 0.02). The defaults are the network of PICI, with 11.02 million parameters.

    Sources: Masked Autoencoders Are Scalable Vision Learners, https://arxiv.org/abs/2111.06377; PICI,
    https://arxiv.org/abs/2401.13503.

    Args:
        image_size: Side of the images in pixels.
        patch_size: Side of a patch in pixels, which divides ``image_size``.
        width: Of a token, divisible by 4 and by ``heads``.
        depth: Number of blocks.
        heads: Of each attention.
        mlp_ratio: Hidden width of the perceptron over ``width``.
        channels: Of the images.
        checkpointing: Keep for the backward pass only what enters each block, and compute the rest a second time.

    Raises:
        TypeError: If an argument is no integer, or ``checkpointing`` no bool.
        ValueError: If an integer is below 1, or does not divide what it has to.

    Attributes:
        num_patches: L, how many patches an image has.
    """

    positions: Tensor

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 384,
        depth: int = 6,
        heads: int = 12,
        mlp_ratio: int = 4,
        channels: int = 3,
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        side = _patches_of_a_side(image_size, patch_size)
        self.image_size, self.patch_size, self.num_patches = int(image_size), int(patch_size), side**2
        self.channels = check_size(channels, "channels")
        self.transformer = Transformer(width, depth, heads, mlp_ratio, checkpointing)
        self.width = int(width)
        self.embedding = nn.Linear(self.patch_size**2 * self.channels, self.width)
        self.class_token = nn.Parameter(torch.empty(self.width))
        self.register_buffer("positions", grid_positions(side, self.width).to(self.class_token.dtype))
        _draw_weights(self, self.class_token)

    def forward(
        self,
        images: Tensor,  # (B, C, S, S)
        keep: Tensor | None = None,  # (B, kept) int64
    ) -> Tensor:
        """Return the class tokens (B, ``width``) after the last norm: row 0 of :meth:`encode`, for less work.

        Raises:
            TypeError: See :meth:`encode`.
            ValueError: See :meth:`encode`.
        """
        tokens: Tensor = self.transformer(self._tokens(images, keep), lambda tokens: tokens[:, :1])
        return tokens.squeeze(1)

    def encode(
        self,
        images: Tensor,  # (B, C, S, S)
        keep: Tensor | None = None,  # (B, kept) int64
    ) -> Tensor:
        """Return the tokens (B, 1 + kept, ``width``) after the last norm, the class token first.

        Args:
            images: Floating, of the network's size and channels.
            keep: Which patches of each image the network sees; None for all of them, in order.

        Raises:
            TypeError: If the images are not floating, or ``keep`` is not int64.
            ValueError: If a shape does not fit.
        """
        tokens: Tensor = self.transformer(self._tokens(images, keep))
        return tokens

    def patches(
        self,
        images: Tensor,  # (B, C, S, S)
        index: Tensor | None = None,  # (B, R) int64
    ) -> Tensor:
        """Return patches (B, R, ``patch_size**2 * channels``), within each by row, then column, then channel.

        Args:
            images: Floating, of the network's size and channels.
            index: Which patches of each image; None for all L, by row, then column.

        Raises:
            TypeError: See :meth:`encode`.
            ValueError: See :meth:`encode`.
        """
        self._check_images(images)
        side = self.image_size // self.patch_size
        cut: Tensor = images.unflatten(3, (side, self.patch_size)).unflatten(2, (side, self.patch_size))
        cut = cut.permute(0, 2, 4, 3, 5, 1)  # (B, row, column, row within, column within, C)
        if index is None:
            return cut.reshape(-1, self.num_patches, self.patch_size**2 * self.channels)
        _check_index(index, "index", images.shape[0], self.num_patches)
        batch = torch.arange(images.shape[0], device=index.device).unsqueeze(1)
        return cut[batch, index // side, index % side].flatten(2)

    def _tokens(
        self,
        images: Tensor,  # (B, C, S, S)
        keep: Tensor | None,  # (B, kept)
    ) -> Tensor:
        """Return what the first block gets, (B, 1 + kept, ``width``)."""
        if keep is not None:
            _check_index(keep, "keep", images.shape[0], self.num_patches)
        positions = self.positions[1:] if keep is None else self.positions[1:][keep]
        patches = self._embedded(images, keep) + positions
        first = (self.class_token + self.positions[0]).expand(images.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1)

    def _check_images(self, images: Tensor) -> None:
        shape = (self.channels, self.image_size, self.image_size)
        if images.dim() != 4 or images.shape[1:] != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(f"images: expected shape (B, {expected}), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise TypeError(f"images: expected a floating dtype, got {images.dtype}")

    def _embedded(
        self,
        images: Tensor,  # (B, C, S, S)
        keep: Tensor | None,  # (B, kept)
    ) -> Tensor:
        """Return the tokens of patches without their positions, (B, kept, ``width``)."""
        tokens: Tensor = self.embedding(self.patches(images, keep))
        return tokens


class MaskedDecoder(nn.Module):
    """Predict the pixels of patches from the tokens of some of them.

    A linear layer maps the encoder's tokens to ``width``. Patches without a token get the learned mask token. All are
    put into the order of the image, and their fixed positions are added. With the class token they go through blocks
    and a norm like those of :class:`VisionTransformer`. A linear layer gives the values of each patch, in the order of
    :meth:`VisionTransformer.patches`. Weights are drawn as in :class:`VisionTransformer`, and the mask token like its
    class token. The defaults are the decoder of PICI, with 25.91 million parameters.

    Args:
        image_size: Side of the images in pixels.
        patch_size: Side of a patch in pixels, which divides ``image_size``.
        encoder_width: Of the encoder's tokens.
        width: Of a token here, divisible by 4 and by ``heads``.
        depth: Number of blocks.
        heads: Of each attention.
        mlp_ratio: Hidden width of the perceptron over ``width``.
        channels: Of the images.
        checkpointing: Keep for the backward pass only what enters each block, and compute the rest a second time.

    Raises:
        TypeError: If an argument is no integer, or ``checkpointing`` no bool.
        ValueError: If an integer is below 1, or does not divide what it has to.

    Attributes:
        num_patches: L, how many patches an image has.
    """

    positions: Tensor

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        encoder_width: int = 384,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: int = 4,
        channels: int = 3,
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        side = _patches_of_a_side(image_size, patch_size)
        self.num_patches = side**2
        encoder_width = check_size(encoder_width, "encoder_width")
        values = int(patch_size) ** 2 * check_size(channels, "channels")
        self.transformer = Transformer(width, depth, heads, mlp_ratio, checkpointing)
        self.embedding = nn.Linear(encoder_width, int(width))
        self.mask_token = nn.Parameter(torch.empty(int(width)))
        self.register_buffer("positions", grid_positions(side, int(width)).to(self.mask_token.dtype))
        self.prediction = nn.Linear(int(width), values)
        _draw_weights(self, self.mask_token)

    def forward(
        self,
        tokens: Tensor,  # (B, 1 + kept, encoder_width)
        keep: Tensor,  # (B, kept) int64
        hidden: Tensor | None = None,  # (B, R) int64
    ) -> Tensor:
        """Return predicted patches (B, R, ``patch_size**2 * channels``).

        Args:
            tokens: Result of :meth:`VisionTransformer.encode` for ``keep``.
            keep: Which patches of each image the encoder saw.
            hidden: Which patches to predict; None for all L, by row, then column. Fewer patches take less time, and the
                prediction of each is the same.

        Raises:
            TypeError: If ``keep`` or ``hidden`` is not int64.
            ValueError: If a shape does not fit.
        """
        _check_index(keep, "keep", tokens.shape[0], self.num_patches)
        expected = (keep.shape[0], 1 + keep.shape[1], self.embedding.in_features)
        if tokens.shape != expected:
            raise ValueError(f"tokens: expected shape {expected} for {keep.shape[1]} kept, got {tuple(tokens.shape)}")
        if hidden is not None:
            _check_index(hidden, "hidden", tokens.shape[0], self.num_patches)
        tokens = self.embedding(tokens).to(self.mask_token.dtype)  # another one under autocast
        masked = self.mask_token.expand(tokens.shape[0], self.num_patches, -1)
        patches = masked.scatter(1, _as_rows(keep, masked), tokens[:, 1:])
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.positions

        def wanted(tokens: Tensor) -> Tensor:
            return tokens[:, 1:] if hidden is None else tokens[:, 1:].gather(1, _as_rows(hidden, tokens))

        predicted: Tensor = self.prediction(self.transformer(tokens, wanted))
        return predicted


def random_masks(
    batch: int,
    num_patches: int,
    kept: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw the patches of each image that are kept, (B, kept), and those that are hidden, (B, L - kept), as int64.

    Every set of ``kept`` patches is equally likely, for each image on its own; both results are in ascending order.
    The same state of the generator gives the same masks on every device.

    Args:
        batch: B, the number of images.
        num_patches: L, the number of patches of an image.
        kept: Number of patches that are kept, 1 to L.
        generator: Generator on the CPU; None for torch's default one.
        device: Device of the results; None for the CPU.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If it is out of range.
    """
    batch, num_patches = check_size(batch, "batch", 0), check_size(num_patches, "num_patches")
    kept = check_integer(kept, "kept", 1, num_patches)
    noise = torch.rand(batch, num_patches, generator=generator, dtype=torch.float32, device="cpu").to(device)
    order = noise.argsort(dim=1, stable=True)
    return order[:, :kept].sort(dim=1).values, order[:, kept:].sort(dim=1).values


def grid_positions(side: int, width: int) -> Tensor:
    r"""Return the fixed positions (1 + ``side**2``, ``width``) of a class token and a square of patches, in float64.

    Row 0, of the class token, is 0. The first half of a patch's row is made of its column :math:`p`, the second of its
    row, by :math:`w/4` frequencies each for a width of :math:`w`: the sines of :math:`p / 10000^{4i/w}`, then their
    cosines.

    Source: the code of MAE, https://arxiv.org/abs/2111.06377.

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If an argument is out of range, or ``width`` is not a multiple of 4.
    """
    side, width = check_size(side, "side"), check_size(width, "width")
    if width % 4:
        raise ValueError(f"width: expected a multiple of 4, for sines and cosines of two places, got {width}")
    frequencies = 10000.0 ** (torch.arange(width // 4, dtype=torch.float64) * (-4 / width))
    angles = torch.arange(side, dtype=torch.float64).outer(frequencies)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    columns, rows = waves.unsqueeze(0).expand(side, -1, -1), waves.unsqueeze(1).expand(-1, side, -1)
    patches = torch.cat([columns, rows], dim=2).flatten(0, 1)
    return torch.cat([torch.zeros_like(patches[:1]), patches])


def _patches_of_a_side(image_size: int, patch_size: int) -> int:
    image_size, patch_size = check_size(image_size, "image_size"), check_size(patch_size, "patch_size")
    if image_size % patch_size:
        raise ValueError(f"patch_size: expected a divisor of image_size, which is {image_size}, got {patch_size}")
    return image_size // patch_size


def _check_index(index: Tensor, name: str, batch: int, num_patches: int) -> None:
    if index.dtype != torch.int64:
        raise TypeError(f"{name}: expected dtype torch.int64, got {index.dtype}")
    if index.dim() != 2 or index.shape[0] != batch or not 1 <= index.shape[1] <= num_patches:
        expected = f"({batch}, 1 to {num_patches})"
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(index.shape)}")


def _as_rows(index: Tensor, like: Tensor) -> Tensor:
    """Return the index (B, R) of rows of (B, N, width) as scatter and gather take it, (B, R, width)."""
    return index.unsqueeze(2).expand(-1, -1, like.shape[2])


def _draw_weights(network: nn.Module, token: Tensor) -> None:
    for part in network.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    nn.init.normal_(token, std=STD)
