"""Writes the results of a sweep: a table and a figure."""

from collections.abc import Sequence
from pathlib import Path

from deepclust_ext.evaluation.plots import save_sweep
from deepclust_ext.evaluation.sweep import SweepScores, csv_of
from deepclust_ext.training.files import replacing, write_text

TABLE_NAME, FIGURE_NAME = "sweep.csv", "sweep.png"


def write_sweep(folder: Path, results: Sequence[SweepScores], *, trained: int) -> tuple[list[Path], str]:
    """Write ``sweep.csv`` and, with matplotlib, ``sweep.png``; return where they are, and why there is no figure.

    Args:
        folder: Made if there is none.
        results: Scores for each K.
        trained: The K that the rows were learned with, which the figure marks.

    Raises:
        OSError: If a file cannot be written; the message names it.
    """
    table, figure = folder / TABLE_NAME, folder / FIGURE_NAME
    write_text(table, csv_of(results))
    try:
        with replacing(figure) as unfinished:
            save_sweep(unfinished, results, trained=trained)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        return [table], "no figure, because matplotlib is missing: pip install 'deepclust_ext[plot]'"
    return [table, figure], ""
