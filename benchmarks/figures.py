"""Pictures of results: `python -m benchmarks.figures CSV FILE` draws how much longer rivals take than ours.

Needs matplotlib, the extra `plot`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.glance import find_headlines
from benchmarks.growth import MEMORY_NOISE_MB, WHOLE_MODES, Points, points_of
from benchmarks.report import Row, last_runs, read_csv

# Colors that the color-blind tell apart, by Okabe and Ito; markers differ too.
OUR_COLOR, LOSS_COLOR = "#0072B2", "#D55E00"
RIVALS = (("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#56B4E9", "D"), ("#000000", "P"), ("#999999", "X"))
GRAY = "#666666"

mpl.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "savefig.facecolor": "white",  # readable on a dark page too
        "svg.hashsalt": "deepclust_ext",  # the same picture is the same file
    }
)


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the ending of its name says how."""
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def as_svg(figure: Figure) -> bytes:
    """Return a picture as SVG."""
    stream = BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def plain(value: float, _: object = None) -> str:
    """Return a number without exponent."""
    return f"{value:g}" if 1e-3 <= value < 1e6 else f"{value:.0e}"


# Growth


def draw_growth(title: str, providers: Mapping[str, Points]) -> Figure:
    """Draw what was measured of a series against N: time, with its band from p20 to p80, and memory."""
    mode = WHOLE_MODES[next(iter(providers["ours"].values())).mode]
    titles = {
        "median_ms": (f"time, {mode}", "ms"),
        "peak_extra_mb": ("peak extra memory", f"MB, {MEMORY_NOISE_MB:g} at least"),
    }
    measured = [column for column in titles if any(points_of(points, column)[0] for points in providers.values())]
    figure = Figure(figsize=(1.5 + 3.75 * len(measured), 3.6), layout="constrained")
    for axes, column in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
        draw_curves(axes, providers, column)
        axes.set(title=titles[column][0], ylabel=titles[column][1])
    figure.suptitle(title, fontweight="bold", fontsize=10)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def draw_curves(axes: Axes, providers: Mapping[str, Points], column: str) -> None:
    """Draw one column against N, both logarithmic, in the same colors for every column."""
    rivals = iter(RIVALS * len(providers))
    for name, points in providers.items():
        color, marker = (OUR_COLOR, "o") if name == "ours" else next(rivals)
        width, order = (2.5, 3) if name == "ours" else (1.2, 2)
        sizes, values = points_of(points, column)
        if column == "peak_extra_mb":
            values = [max(value, MEMORY_NOISE_MB) for value in values]
        axes.plot(sizes, values, color=color, marker=marker, markersize=4, linewidth=width, zorder=order, label=name)
        if column == "median_ms":
            lowest, highest = ([getattr(points[size], end) for size in sizes] for end in ("p20_ms", "p80_ms"))
            axes.fill_between(sizes, lowest, highest, color=color, alpha=0.2, linewidth=0)
    sizes = sorted({size for points in providers.values() for size in points})
    axes.set(xscale="log", yscale="log", xlabel="rows N")
    axes.set_xticks(sizes, [str(size) for size in sizes], rotation=45 if len(sizes) > 4 else 0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, linewidth=0.5)


# Ratios


def draw_ratios(rows: Sequence[Row]) -> Figure:
    """Draw how long every rival takes in units of ours, for each op at its largest case; to the left of 1 we lose."""
    by_op: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.op.lower()):
        by_op.setdefault(row.op, []).append(row)
    blocks = [block for of_op in by_op.values() for block in find_headlines(of_op)]
    lines = sum(len(found) + 1.4 for found in blocks)
    figure = Figure(figsize=(8, 1 + 0.2 * lines), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    ticks, labels, y = [], [], 0.0
    for found in blocks:
        op, case, mode = found[0].op, found[0].case, WHOLE_MODES[found[0].mode]
        axes.annotate(f"{op}  ", (0, y), xycoords=("axes fraction", "data"), ha="right", va="center", fontweight="bold")
        axes.annotate(
            f"{case}, {mode}", (1, y), xycoords=("axes fraction", "data"), ha="right", va="center", color=GRAY
        )
        for row in found:
            y += 1
            ratio = row.per_ours or 1.0
            axes.barh(y, ratio - 1, left=1, height=0.75, color=OUR_COLOR if ratio >= 1 else LOSS_COLOR)
            beside, side = ((4, 0), "left") if ratio >= 1 else ((-4, 0), "right")
            axes.annotate(
                f"{ratio:.3g}", (ratio, y), beside, textcoords="offset points", ha=side, va="center", fontsize=8
            )
            ticks.append(y)
            labels.append(row.provider)
        y += 1.4
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.6, -0.8)
    ratios = [1.0, *(row.per_ours or 1.0 for found in blocks for row in found)]
    axes.set_xlim(min(0.7, 0.7 * min(ratios)), 1.5 * max(ratios))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("time of a rival / ours, on a logarithmic scale; left of 1 the rival is faster")
    axes.set_title(describe(rows), fontsize=10, loc="left")
    return figure


def describe(rows: Sequence[Row]) -> str:
    """Return where some rows were measured."""
    row = rows[-1]
    threads = f"{row.instruction_set}, {row.threads} threads, " if row.device == "cpu" else ""
    return f"{row.machine}, {threads}{row.dtype}, torch {row.torch}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the ratios of a CSV, of every case the last run."""
    parser = argparse.ArgumentParser("python -m benchmarks.figures", description="Draw ratios of rivals and ours.")
    parser.add_argument("csv", type=Path, metavar="CSV", help="results of one machine")
    parser.add_argument("file", type=Path, metavar="FILE", help="where to: .svg, .png or .pdf")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args(arguments)
    rows = [row for row in last_runs(read_csv(options.csv)) if row.dtype == options.dtype]
    if not rows:
        parser.error(f"CSV: expected rows in {options.dtype}, got none in {options.csv}")
    options.file.parent.mkdir(parents=True, exist_ok=True)
    save(draw_ratios(rows), options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
