"""Means of what the steps of an epoch log, and an error at the first loss that is not finite."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Steps between two looks at the losses: a look waits for the device.
STEPS_BETWEEN_LOOKS = 64


@dataclass
class Step:
    """A step, as messages name it."""

    number: int  # from 0, in the whole run
    epoch: int  # from 1
    phase: str
    data: str
    terms: dict[str, Tensor]  # each ()
    index: Tensor  # (B,) int64, on the CPU

    def __str__(self) -> str:
        """Return step, terms and images in words; waits for the device."""
        terms = ", ".join(f"{name} {float(term):.6g}" for name, term in self.terms.items())
        return (
            f"step {self.number} (epoch {self.epoch}, phase {self.phase!r}): {terms}; "
            f"images of {self.data!r}: {self.index.tolist()}"
        )


class Tally:
    """Sums of the terms of an epoch, which stay on the device, and the steps whose losses have not been checked.

    Args:
        state: State of an epoch that was stopped, see :meth:`state`; None at the beginning of an epoch.
        device: Where the sums are.

    Attributes:
        steps: Number of steps added.
        last: The last step that was added to this object.
    """

    def __init__(self, state: Mapping[str, Any] | None = None, device: torch.device | str = "cpu") -> None:
        state = state or {"steps": 0, "sums": {}, "counts": {}}
        self.steps: int = state["steps"]
        self._sums: dict[str, Tensor] = {name: total.to(device) for name, total in state["sums"].items()}
        self._counts: dict[str, int] = dict(state["counts"])
        self._unseen: list[Step] = []
        self.last: Step | None = None

    def state(self) -> dict[str, Any]:
        """Return the state to continue from; waits for the device."""
        sums = {name: total.detach().cpu() for name, total in self._sums.items()}
        return {"steps": self.steps, "sums": sums, "counts": dict(self._counts)}

    def add(self, step: Step) -> None:
        """Add a step.

        Raises:
            FloatingPointError: If the loss of a step since the last check is not finite; the message names that step,
                its terms and its images.
        """
        for name, term in step.terms.items():
            self._sums[name] = self._sums[name] + term if name in self._sums else term
            self._counts[name] = self._counts.get(name, 0) + 1
        self._unseen.append(step)
        self.last = step
        self.steps += 1
        if len(self._unseen) >= STEPS_BETWEEN_LOOKS:
            self._look()

    def means(self) -> dict[str, float]:
        """Return the mean of each term over the steps that had it; waits for the device.

        Raises:
            FloatingPointError: As :meth:`add`.
        """
        self._look()
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def _look(self) -> None:
        if not self._unseen:
            return
        losses = torch.stack([step.terms["loss"] for step in self._unseen])
        for step, fine in zip(self._unseen, losses.isfinite().tolist(), strict=True):
            if not fine:
                raise FloatingPointError(
                    f"the loss is not finite at {step}. The last checkpoint is from before this epoch; a lower "
                    f"learning rate, or images without extreme or missing values, may help"
                )
        self._unseen.clear()
