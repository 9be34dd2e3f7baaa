"""Bundled data and augmentations of whole batches."""

from deepclust_ext.data.augment import RandomAffine, RandomGamma
from deepclust_ext.data.digits import Digits
from deepclust_ext.data.views import PerImage, strong_view, weak_view

__all__ = ["Digits", "PerImage", "RandomAffine", "RandomGamma", "strong_view", "weak_view"]
