"""One trainer for every method."""

from deepclust_ext.training.trainer import TrainConfig, Trainer, seed_everything

__all__ = ["TrainConfig", "Trainer", "seed_everything"]
