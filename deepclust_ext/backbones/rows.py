"""A network for rows of features, which are given as images of one pixel with a channel for each feature."""

from torch import nn

WIDTH = 128
#: How a recipe names it.
ROWS_NETWORK = "deepclust_ext.backbones.rows:rows_network"
#: Numbers that it takes: batch normalization adds up squares of sums of them, which beyond may leave float32.
LARGEST = 1e15


def rows_network() -> nn.Module:
    """Return a perceptron from (B, D, 1, 1) to (B, 128); D is taken from the first batch."""
    return nn.Sequential(
        nn.Flatten(),
        nn.LazyLinear(WIDTH, bias=False),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(inplace=True),
        nn.Linear(WIDTH, WIDTH, bias=False),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(inplace=True),
    )
