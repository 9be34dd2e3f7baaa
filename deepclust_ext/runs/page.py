"""The report of a run."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from deepclust_ext import recipes
from deepclust_ext.evaluation.report import report_html
from deepclust_ext.runs.folder import Run
from deepclust_ext.runs.probe import Probe
from deepclust_ext.runs.source import labels_of
from deepclust_ext.training.files import REPORT_NAME, write_text


def write_page(
    run: Run,
    images: Dataset[Any],
    rows: Tensor,  # (N, D)
    shares: Tensor,  # (N, K)
    path: Path | None = None,
) -> Path:
    """Write ``report.html``, one file that works offline, and return its path.

    Args:
        run: The run.
        images: The images that were clustered.
        rows: Rows of the images.
        shares: Shares of the clusters for each image.
        path: Where to write; None for the run's folder.

    Raises:
        OSError: If it cannot be written; the message names it.
    """
    path = run.path / REPORT_NAME if path is None else path
    labels, classes = labels_of(images)
    page = report_html(
        images,
        rows,
        shares,
        title=f"{run.recipe.method}: {run.path.resolve().name}",
        recipe=recipes.dump(run.recipe),
        history=run.history,
        axes={**run.method.axes, **Probe.axes},
        labels=labels,
        classes=classes,
    )
    write_text(path, page)
    return path
