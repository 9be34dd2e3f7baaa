"""What SwAV's loop gives by dtype and epsilon, and what ours gives: `python -m benchmarks.sinkhorn_proof`.

Scores are the cosines of a trained network: features lie around their prototypes, some of which have none. They are
rounded to the dtype; the truth is the logarithmic form in float64 of the rounded scores. Errors are the largest over
the entries that are finite. The table is printed in Markdown, and stands in docs/performance/sinkhorn.md.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.floors import markdown_table
from benchmarks.harness import missing_kernels
from benchmarks.ops.sinkhorn_knopp import clustered_scores, swav_loop
from deepclust_ext import reference, sinkhorn_knopp

SAMPLES, CLUSTERS = 1024, 256
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EPSILONS = (0.1, 0.05, 0.02, 0.01, 0.005, 0.001)
NUM_ITERS = (3, 50)


@dataclass(frozen=True)
class Outcome:
    """How a result compares with the truth."""

    lost: float  # share of the entries that are NaN or Inf
    error: float  # largest among the others; NaN if there are none

    @classmethod
    def of(cls, result: Tensor, truth: Tensor) -> "Outcome":
        """Compare a result with the truth."""
        finite = result.isfinite()
        errors = (result.double() - truth)[finite].abs()
        return cls(1 - float(finite.double().mean()), float(errors.max()) if len(errors) else float("nan"))

    def cells(self) -> tuple[str, str]:
        """Return both numbers as text: a share that is above 0 is never shown as 0, nor one below 1 as 100 %."""
        percent = min(max(round(100 * self.lost), 1), 99) if 0 < self.lost < 1 else round(100 * self.lost)
        return f"{percent} %", f"{self.error:.0e}" if self.error == self.error else "none finite"


def compare(dtype: torch.dtype, epsilon: float, num_iters: int) -> tuple[Outcome, Outcome]:
    """Return what comes of SwAV's loop, and of ours."""
    scores = clustered_scores(SAMPLES, CLUSTERS)[0].to(dtype)
    truth = reference.sinkhorn_knopp(scores.double(), epsilon=epsilon, num_iters=num_iters)
    assert isinstance(truth, Tensor)
    return (
        Outcome.of(swav_loop(scores, epsilon=epsilon, num_iters=num_iters), truth),
        Outcome.of(sinkhorn_knopp(scores, epsilon=epsilon, num_iters=num_iters), truth),
    )


def proof_table() -> str:
    """Return the table in Markdown; two values in a cell are those of NUM_ITERS."""
    titles = ["dtype", "epsilon", "loop: NaN or Inf", "loop: largest error", "ours: NaN or Inf", "ours: largest error"]
    lines = []
    for dtype in DTYPES:
        for epsilon in EPSILONS:
            loops, ours = zip(*(compare(dtype, epsilon, num_iters) for num_iters in NUM_ITERS), strict=True)
            cells = [[outcome.cells() for outcome in outcomes] for outcomes in (loops, ours)]
            lines.append(
                [
                    str(dtype).removeprefix("torch."),
                    str(epsilon),
                    *(", ".join(pair) for outcomes in cells for pair in zip(*outcomes, strict=True)),
                ]
            )
    return markdown_table(titles, lines)


if __name__ == "__main__":
    if missing := missing_kernels("cpu"):
        sys.exit(missing)
    print(proof_table())
