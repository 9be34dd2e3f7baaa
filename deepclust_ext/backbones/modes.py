"""Change a module's training mode for a while, and restore the mode of each of its parts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def keep_modes(module: nn.Module) -> Iterator[None]:
    """Let modes change, and restore the mode of every part afterwards; parts may differ in their mode."""
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        # From the outside in, by the parts' own methods, which may do more than set a flag.
        for part, training in modes.items():
            if part.training != training:
                part.train(training)


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, without gradients, and restore the mode of every part afterwards."""
    with keep_modes(module):
        module.eval()
        with torch.no_grad():
            yield
