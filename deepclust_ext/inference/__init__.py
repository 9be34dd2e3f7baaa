"""What a method says of the images of a data set: rows and clusters, in the data set's order."""

from deepclust_ext.inference.images import IndexedImages, moved, takes_any_size
from deepclust_ext.inference.loader import Loader
from deepclust_ext.inference.loop import assign, device_of, embed, map_images
from deepclust_ext.inference.trained import Trained

__all__ = [
    "IndexedImages",
    "Loader",
    "Trained",
    "assign",
    "device_of",
    "embed",
    "map_images",
    "moved",
    "takes_any_size",
]
