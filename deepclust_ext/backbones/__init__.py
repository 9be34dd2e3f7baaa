"""Networks from images to features, by name."""

from deepclust_ext.backbones.load import BACKBONES, load_backbone

__all__ = ["BACKBONES", "load_backbone"]
