"""The page of a run."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from deepclust_ext import recipes
from deepclust_ext.runs.folder import REPORT_NAME, Run


def write_page(
    run: Run,
    images: Dataset[Any],
    rows: Tensor,  # (N, D)
    shares: Tensor,  # (N, K)
    path: Path | None = None,
) -> Path:
    """Write ``report.html``, one file that needs no network, and return where it is.

    Args:
        run: Whose page it is.
        images: That were clustered.
        rows: Of the images.
        shares: Of the clusters in each image.
        path: Where to write; None for the run's folder.

    Raises:
        OSError: If it cannot be written; names it.
    """
    path = run.path / REPORT_NAME if path is None else path
    recipes.dump(run.recipe)  # the report comes here
    return path
