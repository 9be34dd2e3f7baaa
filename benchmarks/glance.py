"""Every op in one line: its largest case against the floor and the best rival; see docs/performance/index.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmarks.floors import markdown_table
from benchmarks.growth import WHOLE_MODES, exponents, find_series, format_exponent, split_case, whole_rows
from benchmarks.report import OURS, Row, format_cell

TITLES = (
    "op, case",
    "mode",
    "ours, ms",
    "floor, ms",
    "ours / floor",
    "best rival",
    "best rival / ours",
    "exponents of N: time, memory",
)


def find_headlines(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rivals' rows of what is to be shown of one op: the largest case of its series, or every training step.

    Of several series it is the longest one, then that with the most rivals, then the largest one.
    """
    series: dict[str, dict[int, list[Row]]] = {}
    for row in whole_rows(rows):
        place = split_case(row.case)
        if place and row.per_ours is not None and not row.provider.startswith(OURS):
            series.setdefault(place[0], {}).setdefault(place[1], []).append(row)
    steps = [of_case for sizes in series.values() for of_case in sizes.values() if of_case[0].mode == "step"]
    if steps or not series:
        return steps
    shown = max(series.values(), key=lambda sizes: (len(sizes), len(sizes[max(sizes)]), max(sizes)))
    return [shown[max(shown)]]


@dataclass(frozen=True)
class Headline:
    """The case that stands for an op on one machine, or a training step."""

    ours: Row
    best: Row  # of the rivals
    exponents: str  # of N, in time and memory


def find_lines(rows: Sequence[Row]) -> list[Headline]:
    """Return what is to be said of each op and of the step of each method, on one machine."""
    lines = []
    for _, group in groupby(sorted(rows, key=lambda row: row.op.lower()), key=lambda row: row.op):
        of_op = list(group)
        growth = {
            series: (time, memory)
            for series, providers in find_series(of_op).items()
            for name, time, memory in exponents(providers)
            if name in OURS
        }
        for rivals in find_headlines(of_op):
            case, mode = rivals[0].case, rivals[0].mode
            ours = next(row for row in of_op if row.case == case and row.mode == mode and row.provider in OURS)
            place = split_case(case)
            fitted = growth.get(place[0] if place else "", (None, None))
            best = min(rivals, key=lambda row: row.per_ours or 0.0)
            lines.append(Headline(ours, best, ", ".join(filter(None, map(format_exponent, fitted)))))
    return lines


def glance_lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the cells of a line for each op and for the step of each method, under TITLES."""
    return [
        (
            f"`{line.ours.op}`, {line.ours.case}",
            WHOLE_MODES[line.ours.mode],
            *(format_cell(value) for value in (line.ours.median_ms, line.ours.floor_ms, line.ours.per_floor)),
            line.best.provider,
            format_cell(line.best.per_ours),
            line.exponents,
        )
        for line in find_lines(rows)
    ]


def glance_table(rows: Sequence[Row]) -> str:
    """Return some results as a Markdown table, with a line for each op and for the step of each method."""
    return markdown_table(TITLES, glance_lines(rows))
