"""The report of some results: one HTML page that needs no other file.

It opens with a line for each op and with the machine; pictures of growth and all rows are folded, an op each.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.glance import TITLES, glance_lines
from benchmarks.growth import exponents, find_series, format_exponent
from benchmarks.report import OURS, Row, format_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PEERS = ("faiss", "flash_kmeans", "lightly", "ot", "pytorch_metric_learning")  # as they are imported
PEERS_ON = {"cpu": (*PEERS, "kornia", "sklearn"), "cuda": (*PEERS, "cuvs", "flashlib", "memeff", "siglip_kernel")}

COLUMNS = {
    "case": "case",
    "provider": "provider",
    "mode": "mode",
    "median_ms": "ms",
    "p20_ms": "p20",
    "p80_ms": "p80",
    "per_ours": "/ ours",
    "per_yardstick": "/ yardstick",
    "floor_ms": "floor, ms",
    "per_floor": "/ floor",
    "peak_extra_mb": "extra MB",
    "rounds": "rounds",
    "status": "status",
}
TEXT_COLUMNS = ("case", "provider", "mode", "status")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222;
       background: white; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; overflow-wrap: normal }
summary { font-size: 1.1rem; padding: .5rem 0; cursor: pointer }
th, td { padding: 2px 10px; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }
.text { text-align: left }
tr.ours { background: #e6f1f8 }
tr.wrong { background: #fbe3d6; font-weight: bold }
tr.untimed { color: #777 }
img { max-width: 100%; display: block; margin: 1rem 0 }
@media (max-width: 45rem) {
  body { margin: 1rem auto }
  .glance :is(th, td):is(:nth-child(2), :nth-child(4), :nth-child(8)) { display: none }
  th, td { padding: 2px 5px }
}
"""

EXPLANATION = (
    "Results were checked before anything was timed; what failed is WRONG and has no time. ms: median; p20 and p80: "
    "spread; / ours: median of the ratios within a round, above 1 where ours is faster; / floor: over the least that "
    "this machine can take for the operations and bytes; extra MB: peak memory of one call beyond its inputs."
)


def peer_versions(device: str) -> dict[str, str]:
    """Return the versions of the packages that we are compared with; faiss and cuVS are installed under many names."""
    names = metadata.packages_distributions()
    versions: dict[str, str] = {}
    for module in PEERS_ON[device]:
        versions.update({name: metadata.version(name) for name in names.get(module, ())} or {module: "not installed"})
    return versions


def write_page(path: Path, rows: Sequence[Row], environment: Mapping[str, str]) -> None:
    """Write the report of some rows, and say where, or why it has no pictures.

    Args:
        path: Where to.
        rows: What was measured.
        environment: What a reader has to know about that, by name.
    """
    try:
        from benchmarks import figures
    except ImportError as missing:
        print(f"no pictures in the report: {missing}; matplotlib comes with the extra `plot`")
        draw_ratios, draw_growth = None, None
    else:
        draw_ratios, draw_growth = figures.draw_ratios, figures.draw_growth
    known = {**describe_machine(rows), **environment}
    parts = ["<h1>Benchmarks of deepclust_ext</h1>", f"<p>{escape(summarize_machine(known))}</p>"]
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    for dtype in dtypes:
        of_dtype = [row for row in rows if row.dtype == dtype]
        lines = [[cell.replace("`", "") for cell in line] for line in glance_lines(of_dtype)]
        titles = (f"{TITLES[0]}, {dtype}", *TITLES[1:])
        parts.append(f"<div class=glance>{table(titles, lines, text=2)}</div>")
        if draw_ratios and any(row.per_ours is not None for row in of_dtype):
            parts.append(image(draw_ratios(of_dtype), f"Times of rivals over ours in {dtype}"))
    parts.append(f"<p>{EXPLANATION}</p>")
    parts.append(fold("Environment", table(("environment", ""), known.items(), text=2)))
    for op in dict.fromkeys(row.op for row in rows):
        folded: list[str] = []
        for dtype in dtypes:
            of_op = [row for row in rows if (row.op, row.dtype) == (op, dtype)]
            if not of_op:
                continue
            for name, providers in find_series(of_op).items():
                title = f"{op} {name} {dtype}"
                if draw_growth:
                    folded.append(image(draw_growth(title, providers), f"Time and memory of {title} against N"))
                cells = [
                    (provider, format_exponent(of_time), format_exponent(of_memory))
                    for provider, of_time, of_memory in exponents(providers)
                ]
                folded.append(table((f"exponent of N, {name}", "time", "memory"), cells, text=1))
            folded.append(f"<h3>All rows, {escape(dtype)}</h3>{rows_table(of_op)}")
        parts.append(fold(op, "\n".join(folded)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Benchmarks of deepclust_ext</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    print(f"report: {path}")


def image(figure: "Figure", description: str) -> str:
    """Return a picture as part of a page."""
    from benchmarks.figures import as_svg

    data = b64encode(as_svg(figure)).decode()
    return f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,{data}">'


def describe_machine(rows: Sequence[Row]) -> dict[str, str]:
    """Return on what the rows were measured, as far as they say it themselves."""
    names = ("machine", "instruction_set", "device", "threads", "torch", "commit", "dtype")
    return {name: ", ".join(dict.fromkeys(str(getattr(row, name)) for row in rows)) for name in names}


def summarize_machine(known: Mapping[str, str]) -> str:
    """Return the processor, its instruction set, threads and cores, the system and the date, as far as known."""
    cores = f" of {known['cores']} cores" if "cores" in known else ""
    facts = (
        known["machine"],
        known["instruction_set"],
        f"{known['threads']} threads{cores}",
        f"torch {known['torch']}",
    )
    return ", ".join(filter(None, (*facts, known.get("system"), known.get("date"))))


def fold(title: str, content: str) -> str:
    """Return a part of a page that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


def table(titles: Sequence[str], lines: Iterable[Sequence[str]], text: int) -> str:
    """Return a table whose first columns are text."""

    def tagged(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=text' * (i < text)}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))

    body = "".join(f"<tr>{tagged('td', line)}</tr>\n" for line in lines)
    return f"<div class=wide><table><tr>{tagged('th', titles)}</tr>\n{body}</table></div>"


def rows_table(rows: Sequence[Row]) -> str:
    """Return all rows, those of ours and those that were not timed set apart."""

    def tagged(tag: str, name: str, text: str) -> str:
        return f"<{tag}{' class=text' * (name in TEXT_COLUMNS)}>{escape(text)}</{tag}>"

    def kind(row: Row) -> str:
        if row.status.startswith("WRONG"):
            return "wrong"
        return "untimed" if row.median_ms is None else "ours" if row.provider in OURS else "rival"

    titles = "".join(tagged("th", *item) for item in COLUMNS.items())
    lines = [
        f"<tr class={kind(row)}>"
        + "".join(tagged("td", name, format_cell(getattr(row, name))) for name in COLUMNS)
        + "</tr>\n"
        for row in rows
    ]
    return f"<div class=wide><table><tr>{titles}</tr>\n{''.join(lines)}</table></div>"
