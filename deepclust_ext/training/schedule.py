"""The learning rate over a run."""

import math
from dataclasses import dataclass

from deepclust_ext.ops._checks import check_fraction, check_non_negative, check_positive

SCHEDULES = ("constant", "warmup_cosine")


@dataclass(frozen=True)
class LearningRate:
    r"""The share of the peak learning rate as a function of the epoch, which may be fractional.

    "constant" is 1. "warmup_cosine" rises linearly from 0 to 1 over ``warmup`` epochs, and is then

    .. math::
        floor + (1 - floor) \frac{1 + \cos(\pi (e - warmup) / horizon)}{2}

    up to the end of the horizon, and ``floor`` after it. The authors of HaDis have a warm-up of 50 epochs and a horizon
    of 1000 in a run of 1000 epochs. So their run ends at 0.62 % of the peak and not at 0.

    Attributes:
        name: "constant" or "warmup_cosine".
        warmup: Epochs of the linear rise.
        floor: Share of the peak at the end of the horizon.
        horizon: Number of epochs over which the cosine falls; None for all epochs after the warm-up.

    Raises:
        TypeError: If a value is no number.
        ValueError: If a value is out of range, or "constant" is given a value that it does not use.
    """

    name: str = "constant"
    warmup: float = 0.0
    floor: float = 0.0
    horizon: float | None = None

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"learning_rate.name: expected one of {', '.join(SCHEDULES)}, got {self.name!r}")
        for name, check in (("warmup", check_non_negative), ("floor", check_fraction), ("horizon", check_positive)):
            if name != "horizon" or self.horizon is not None:
                object.__setattr__(self, name, check(getattr(self, name), f"learning_rate.{name}"))
        if self.name == "constant" and (self.warmup, self.floor, self.horizon) != (0.0, 0.0, None):
            raise ValueError("learning_rate: expected no warmup, floor or horizon for 'constant', got one")

    @property
    def open_ended(self) -> bool:
        """Whether the rates of the first epochs stay the same in a run with more epochs."""
        return self.name == "constant" or self.horizon is not None

    def factor(self, epoch: float, epochs: int) -> float:
        """Return the share of the peak.

        Args:
            epoch: Passes over the data so far, fractional.
            epochs: Of the whole run.
        """
        if self.name == "constant":
            return 1.0
        if epoch < self.warmup:
            return epoch / self.warmup
        horizon = epochs - self.warmup if self.horizon is None else self.horizon
        share = min((epoch - self.warmup) / horizon, 1.0) if horizon > 0 else 0.0
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * share))
