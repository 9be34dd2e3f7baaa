"""Networks that map images to features, by name, and the masked autoencoder."""

from deepclust_ext.backbones.load import BACKBONES, load_backbone
from deepclust_ext.backbones.masked_autoencoder import MaskedDecoder, VisionTransformer, grid_positions, random_masks

__all__ = ["BACKBONES", "MaskedDecoder", "VisionTransformer", "grid_positions", "load_backbone", "random_masks"]
