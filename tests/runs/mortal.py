"""A small network that ends its rank in the middle of a run, where the environment says so."""

import os
import signal
import time
from pathlib import Path

from torch import Tensor, nn

#: RANK:PASS:FILE, which rank ends, before which of its passes in training, and where it says when.
VARIABLE = "DEEPCLUST_TEST_MORTAL"
_passes = 0


class Mortal(nn.Module):
    """Hands on what it gets, until it does not."""

    def forward(self, features: Tensor) -> Tensor:
        global _passes
        _passes += self.training
        rank, moment, path = os.environ.get(VARIABLE, "::").split(":")
        if self.training and (rank, moment) == (os.environ.get("RANK"), str(_passes)):
            Path(path).write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return features


def network() -> nn.Module:
    """Return a network from (B, 1, 12, 12) to (B, 16)."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 16),
        Mortal(),
    )
