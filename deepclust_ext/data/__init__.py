"""Bundled data and augmentations that run on whole batches."""

from deepclust_ext.data.augment import RandomAffine
from deepclust_ext.data.digits import Digits

__all__ = ["Digits", "RandomAffine"]
