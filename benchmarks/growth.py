"""How time and memory grow with the number of rows N: the exponent of the power law that fits a series best."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.report import Row

#: Modes that stand for a case, and what they are called: of a training step, of an op with gradients, of one without.
WHOLE_MODES = {"step": "whole step", "both": "forward and backward", "forward": "forward"}
MEMORY_NOISE_MB = 0.5  # Linux counts the pages of a process by the hundred

Points = dict[int, Row]  # rows of a case -> what was measured there


def split_case(name: str) -> tuple[str, int] | None:
    """Return what all cases of a series are called, and the rows of this one; None for what has no size."""
    size = re.search(r"-(\d+)x(\d+)", name)
    if not size:
        return None
    return f"{name[: size.start()]}-Nx{size[2]}{name[size.end() :]}", int(size[1])


def whole_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one mode for each case, the first of WHOLE_MODES that it has."""
    modes: dict[str, set[str]] = {}
    for row in rows:
        modes.setdefault(row.case, set()).add(row.mode)
    whole = {case: next((mode for mode in WHOLE_MODES if mode in found), None) for case, found in modes.items()}
    return [row for row in rows if row.mode == whole[row.case] and not is_yardstick(row)]


def is_yardstick(row: Row) -> bool:
    """Return whether a row is of the yardstick, which alone has a rate."""
    return row.gflop_per_s is not None


def find_series(rows: Sequence[Row]) -> dict[str, dict[str, Points]]:
    """Return the series of one op in one dtype, by name and provider, in the mode that stands for each case.

    Only sizes at which a time or memory was measured are there, and only series with two sizes of ours at least.
    """
    series: dict[str, dict[str, Points]] = {}
    for row in whole_rows(rows):
        place = split_case(row.case)
        measured = row.median_ms is not None or row.peak_extra_mb is not None
        if place and measured:
            series.setdefault(place[0], {}).setdefault(row.provider, {})[place[1]] = row
    return {name: providers for name, providers in series.items() if len(providers.get("ours", ())) > 1}


def points_of(points: Points, column: str, least: float = 0.0) -> tuple[list[int], list[float]]:
    """Return the sizes, growing, at which a column has a value that is large enough, and the values."""
    found = {size: getattr(row, column) for size, row in points.items()}
    pairs = sorted((size, value) for size, value in found.items() if value is not None and value >= least)
    return [size for size, _ in pairs], [value for _, value in pairs]


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Return p of the law c N^p that fits best by least squares of logarithms; None for fewer than two sizes."""
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def exponents(providers: Mapping[str, Points]) -> list[tuple[str, float | None, float | None]]:
    """Return every provider's exponents of time and of memory, the latter as far as it can be told from nothing."""
    return [
        (
            name,
            fit_exponent(*points_of(points, "median_ms")),
            fit_exponent(*points_of(points, "peak_extra_mb", least=MEMORY_NOISE_MB)),
        )
        for name, points in providers.items()
    ]


def growth_lines(rows: Sequence[Row]) -> list[str]:
    """Return the exponents of all series of one op in one dtype, for a terminal."""
    lines = []
    for name, providers in find_series(rows).items():
        sizes = sorted({size for points in providers.values() for size in points})
        lines.append(f"{name}, N from {sizes[0]} to {sizes[-1]}: exponents of N in time and memory")
        width = max(map(len, providers))
        lines += [
            f"  {provider.ljust(width)}  {format_exponent(of_time):>5}  {format_exponent(of_memory):>5}"
            for provider, of_time, of_memory in exponents(providers)
        ]
    return lines


def format_exponent(value: float | None) -> str:
    """Return an exponent with two decimals, or nothing."""
    return "" if value is None else f"{value:.2f}"
