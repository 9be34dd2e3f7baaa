"""Bundled data, augmentations of whole batches, and views of images."""

from deepclust_ext.data.augment import RandomAffine, RandomGamma
from deepclust_ext.data.digits import Digits
from deepclust_ext.data.operations import RandomOperations
from deepclust_ext.data.views import VIEWS, PerImage, make_view, resize_view, strong_view, weak_view

__all__ = [
    "VIEWS",
    "Digits",
    "PerImage",
    "RandomAffine",
    "RandomGamma",
    "RandomOperations",
    "make_view",
    "resize_view",
    "strong_view",
    "weak_view",
]
