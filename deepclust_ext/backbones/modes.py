"""A module's modes for a while, and back to what each of its parts was in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def keep_modes(module: nn.Module) -> Iterator[None]:
    """Let modes change, and put every part back into the mode that it was in: a part may have one of its own."""
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
    """Put a module in evaluation mode, without gradients, and every part back into the mode that it was in."""
    with keep_modes(module):
        module.eval()
        with torch.no_grad():
            yield
