"""Images and features from files, bundled data, augmentations of whole batches, and views of images."""

from deepclust_ext.data.augment import RandomAffine, RandomGamma, RandomTurn
from deepclust_ext.data.datasets import DATASETS, load_dataset
from deepclust_ext.data.decode import read_image
from deepclust_ext.data.digits import Digits
from deepclust_ext.data.features import Features, load_features
from deepclust_ext.data.load import load_images
from deepclust_ext.data.neighbors import NeighborView
from deepclust_ext.data.noise import RandomNoise
from deepclust_ext.data.operations import OPERATIONS
from deepclust_ext.data.pixels import ImageError, Pixels
from deepclust_ext.data.random_views import RandomViews
from deepclust_ext.data.seen import PixelRange
from deepclust_ext.data.sources import Images
from deepclust_ext.data.views import VIEWS, PerImage, ResizeView, make_view, resize_view, strong_view, weak_view
from deepclust_ext.reference.augment_views import STEPS

__all__ = [
    "DATASETS",
    "OPERATIONS",
    "STEPS",
    "VIEWS",
    "Digits",
    "Features",
    "ImageError",
    "Images",
    "NeighborView",
    "PerImage",
    "PixelRange",
    "Pixels",
    "RandomAffine",
    "RandomGamma",
    "RandomNoise",
    "RandomTurn",
    "RandomViews",
    "ResizeView",
    "load_dataset",
    "load_features",
    "load_images",
    "make_view",
    "read_image",
    "resize_view",
    "strong_view",
    "weak_view",
]
