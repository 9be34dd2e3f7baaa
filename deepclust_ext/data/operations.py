"""The fourteen operations of SACC's strong view, as steps of :func:`deepclust_ext.augment_views`."""

from collections.abc import Callable
from functools import cache

from torch import Tensor, float32, tensor

from deepclust_ext.reference.augment_views import STEPS

LEVELS = 10  # the strongest one


def _factor(level: int, side: int) -> float:
    return 0.05 + 0.09 * level


def _shift(level: int, side: int) -> float:
    return float(int(0.03 * level * side))


#: Name -> the step, its strength by level of 10 and the view's side, and whether it goes either way.
OPERATIONS: dict[str, tuple[str, Callable[[int, int], float], bool]] = {
    "identity": ("none", lambda level, side: 0.0, False),
    "autocontrast": ("autocontrast", lambda level, side: 0.0, False),
    "equalize": ("equalize", lambda level, side: 0.0, False),
    "brightness": ("brightness", _factor, False),
    "color": ("saturation", _factor, False),
    "contrast": ("contrast", _factor, False),
    "sharpness": ("sharpness", _factor, False),
    "posterize": ("posterize", lambda level, side: 4.0 + int(0.4 * level), False),
    "solarize": ("solarize", lambda level, side: (256 - int(25.6 * level)) / 255, False),
    "rotate": ("rotate", lambda level, side: 3.0 * level, True),
    "shear_x": ("shear_x", lambda level, side: 0.03 * level, True),
    "shear_y": ("shear_y", lambda level, side: 0.03 * level, True),
    "shift_x": ("shift_x", _shift, True),
    "shift_y": ("shift_y", _shift, True),
}


@cache
def operation_table(side: int, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """Return the step (N,) int64 and strength (N,) float32 of every operation at each level, either way; read-only."""
    every = [
        (STEPS.index(step), sign * strength(level, side) if either else strength(level, side))
        for step, strength, either in OPERATIONS.values()
        for level in range(lowest, highest + 1)
        for sign in (1, -1)
    ]
    steps, strengths = zip(*every, strict=True)
    return tensor(steps, device="cpu"), tensor(strengths, dtype=float32, device="cpu")
