"""One trainer for every method."""

from deepclust_ext.training.checkpoint import seed_everything
from deepclust_ext.training.config import KMeansSettings, TrainConfig
from deepclust_ext.training.phases import Phase
from deepclust_ext.training.schedule import LearningRate
from deepclust_ext.training.trainer import Trainer

__all__ = ["KMeansSettings", "LearningRate", "Phase", "TrainConfig", "Trainer", "seed_everything"]
