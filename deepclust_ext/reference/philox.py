"""Philox4x32-10, random numbers by counter, in the integer arithmetic of PyTorch; the kernels draw the same numbers.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, https://doi.org/10.1145/2063384.2063405.
"""

import math

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_DRAW = 1 << 31  # in the last word of a counter, of numbers to draw with


def draw_seed(generator: torch.Generator | None) -> Tensor:
    """Draw the seed of one call, () int64 on the CPU, from a generator on the CPU or torch's default one."""
    return torch.randint(2**63 - 1, (), generator=generator, dtype=torch.int64, device="cpu")


def philox(
    words: tuple[Tensor, Tensor, Tensor, Tensor],  # int64 of 32 bits, of shapes that broadcast
    seed: Tensor,  # () int64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn counters of four words into four random words each."""
    keys = [seed & _LOW, (seed >> 32) & _LOW]
    for _ in range(10):
        # Products wrap to 64 bits; what the shift fills in from the sign is masked.
        first, second = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = (
            (second >> 32) & _LOW ^ words[1] ^ keys[0],
            second & _LOW,
            (first >> 32) & _LOW ^ words[3] ^ keys[1],
            first & _LOW,
        )
        keys = [(key + increment) & _LOW for key, increment in zip(keys, _INCREMENTS, strict=True)]
    return words


def uniform(seed: Tensor, rows: int, samples: int, step: int, device: torch.device) -> Tensor:
    """Return a number in [0, 1) for each sample of each row at a step, (rows, samples) float64."""
    row, sample = _counters(rows, samples, device)
    words = philox((torch.full_like(sample, step), sample, row & _LOW, row >> 32 | _DRAW), seed)
    return (words[0] << 21 | words[1] >> 11).double() * 2.0**-53


def normal(seed: Tensor, rows: int, samples: int, count: int, device: torch.device) -> Tensor:
    """Return standard normal numbers (rows, samples, count) float64, four from each counter (Box-Muller)."""
    row, sample = (x.unsqueeze(-1) for x in _counters(rows, samples, device))
    block = torch.arange((count + 3) // 4, device=device)
    words = [word.double() for word in philox((block, sample, row & _LOW, row >> 32), seed)]
    numbers = []
    for first, second in (words[:2], words[2:]):
        radius = (-2 * ((first + 0.5) * 2.0**-32).log()).sqrt()
        angle = second * (2.0**-32 * 2 * math.pi)
        numbers += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(numbers, dim=-1).flatten(-2)[..., :count]


def _counters(rows: int, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the indices of rows (rows, 1) and of samples (1, samples)."""
    return torch.arange(rows, device=device).unsqueeze(1), torch.arange(samples, device=device).unsqueeze(0)
