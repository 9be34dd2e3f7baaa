"""Losses as modules, one file per loss."""

from deepclust_ext.losses.hsd import HSDLoss
from deepclust_ext.losses.prototype import PrototypeLoss

__all__ = ["HSDLoss", "PrototypeLoss"]
