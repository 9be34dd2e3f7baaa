"""The tables of docs/performance/ are those of the committed results and of the models."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.floors.tables import FLOOR_TABLES
from benchmarks.kmeans import GRID
from benchmarks.pages import BLOCK, NOTHING, PAGES, fill, make_block, op_of, read_results
from benchmarks.report import Row
from tests.benchmarks.test_harness import make_row

ALL_PAGES = sorted(PAGES.glob("*.md"))
ours = partial(make_row, op="spin", provider="ours", per_ours=1.0)
rival = partial(make_row, op="spin", provider="rival")


@pytest.mark.parametrize("path", ALL_PAGES, ids=lambda path: path.stem)
def test_tables_are_those_of_the_results(path: Path) -> None:
    """Where this fails: `python -m benchmarks.pages`."""
    page = path.read_text()
    assert page == fill(page, read_results())
    assert page.count("<!-- begin ") == page.count("<!-- end -->") == len(BLOCK.findall(page))


def test_the_first_page_is_a_screen() -> None:
    assert len((PAGES / "index.md").read_text().splitlines()) <= 60


@pytest.mark.parametrize("family", ["contrastive", "kmeans", "mining", "neighbors", "pairs", "sinkhorn", "views"])
def test_a_page_of_a_family_has_the_headings_of_all(family: str) -> None:
    headings = re.findall(r"^## (.*)$", (PAGES / f"{family}.md").read_text(), re.MULTILINE)
    assert headings == ["What is hard", "Method in five steps", "Measured", "Memory", "Limits"]


def test_nothing_that_was_measured_or_modeled_is_left_out() -> None:
    blocks = {name for path in ALL_PAGES for name, _, _ in BLOCK.findall(path.read_text())}
    rows = [row for row in read_results() if row.op != "training_step"]
    assert {f"times {op_of(row)}" for row in rows} <= blocks
    assert {f"memory {op_of(row)}" for row in rows if row.peak_extra_mb is not None} <= blocks
    assert {"glance", "steps", *(f"floors {ops}" for ops in FLOOR_TABLES)} <= blocks


def test_a_cell_is_that_of_the_row() -> None:
    rows = [
        ours(case="even-100x8", median_ms=12345.6, per_yardstick=0.25, per_floor=1.5, peak_extra_mb=2.0),
        rival(case="even-100x8", median_ms=2.0, per_ours=2.125, peak_extra_mb=None),
        rival(case="even-100x8", provider="large", status="skipped: 17 GB"),
        make_row(op="spin", case="even-100x8", provider="ours, soft", median_ms=0.5, per_ours=0.5),
        make_row(op="spin", case="even-100x8", provider="one turn", mode="forward", median_ms=1.0, gflop_per_s=3.0),
    ]
    assert make_block("times spin", rows).splitlines()[2:] == [
        "| case | ours forward and backward, ms | rival / ours | ours, soft, ms | ours / one turn | ours / floor |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `even-100x8` | 12350 | 2.125 | 0.5 | 0.25 | 1.5 |",
    ]
    assert make_block("memory spin", rows).splitlines()[2:] == [
        "| case | ours, MB | large, MB |",
        "| --- | --- | --- |",
        "| `even-100x8` | 2 | skipped |",
    ]


def test_every_machine_has_a_table_of_its_own() -> None:
    rows = [ours(median_ms=1.0, threads=threads) for threads in (1, 2)]
    rows.append(ours(median_ms=1.0, machine="B 200", device="cuda", dtype="bfloat16", torch="2.15.0+cu132"))
    captions = re.findall(r"^.*:$", make_block("times spin", rows), re.MULTILINE)
    assert ["1 thread," in captions[0], "2 threads," in captions[1], len(captions)] == [True, True, 3]
    assert captions[2] == "B 200, torch 2.15.0, bfloat16:"


def test_the_grid_of_kmeans_has_a_table_of_its_own() -> None:
    rows, clusters, dims = GRID[0]
    fit = partial(ours, op="KMeans", mode="forward", median_ms=1.0)
    results = [
        fit(case=f"random-{rows}x{dims}-k{clusters}-10-iterations"),
        fit(case="random-5000x64-k40-20-iterations"),
    ]
    assert f"{rows}x{dims}" in make_block("times KMeans_grid", results)
    assert f"{rows}x{dims}" not in make_block("times KMeans", results)
    assert "5000x64" in make_block("times KMeans", results)


def test_a_step_is_taken_apart_in_shares_of_our_step() -> None:
    step = partial(make_row, op="training_step", case="hadis-digits-64x8x8", threads=2)
    taken = {
        "data": 1.0,
        "forward": 2.0,
        "loss": 1.0,
        "backward": 5.0,
        "loss_backward": 0.5,
        "optimizer": 1.0,
        "step": 10.0,
    }
    results = [
        *(step(provider="reference", mode=mode, median_ms=3 * ms, per_ours=3.0) for mode, ms in taken.items()),
        *(step(provider="fused", mode=mode, median_ms=ms) for mode, ms in taken.items()),
    ]
    shares = ["10.0%", "20.0%", "10.0%", "50.0%", "10.0%", "15.0%"]
    assert last_cells("steps", results)[1:] == ["10", "3", "3", *shares]
    others = [replace(row, instruction_set="ZVECTOR", median_ms=2 * (row.median_ms or 0.0)) for row in results]
    assert last_cells("steps", [*others, *results])[1:8] == ["10", "3", "3", "20", "3", "3", "10.0%"]
    plain = [step(provider="plain torch", mode=mode, median_ms=1.1 * ms, per_ours=1.1) for mode, ms in taken.items()]
    assert last_cells("steps", [*results, *plain])[1:] == ["10", "3", "1.1", "3", *shares]


def last_cells(name: str, rows: list[Row]) -> list[str]:
    """Return the cells of the last line of a table."""
    return [cell.strip() for cell in make_block(name, rows).splitlines()[-1].strip("|").split("|")]


def test_a_line_of_the_glance_is_an_op_on_all_kinds_of_kernels() -> None:
    results = [
        ours(case="even-100x8", median_ms=1.0, per_floor=1.5, threads=2, instruction_set="AVX2"),
        rival(case="even-100x8", median_ms=2.0, per_ours=2.0, threads=2, instruction_set="AVX2"),
    ]
    wider = [replace(row, instruction_set="AVX512", per_floor=0.5) for row in results]
    on_card = [replace(row, instruction_set="", machine="B 200", device="cuda") for row in results]
    text = make_block("glance", [*on_card, *results, *wider, make_row(op="training_step", mode="step")])
    assert text.startswith("AVX-512: A 1, 2 threads. AVX2: A 1, 2 threads. B 200: B 200, 2 threads.")
    assert "best rival / AVX-512 | AVX2, ms | AVX2 / floor | best rival / AVX2 | B 200, ms" in text
    assert text.splitlines()[4:] == [
        "| `spin`, even-100x8 | forward and backward | 1 | 0.5 | 2, rival | 1 | 1.5 | 2, rival | 1 | 1.5 | 2, rival |"
    ]


def test_the_glance_says_what_was_measured_elsewhere() -> None:
    """A place with more ops stands for the kernels; another one is taken for what is missing there."""
    there = [ours(case="even-100x8", median_ms=1.0), rival(case="even-100x8", median_ms=2.0, per_ours=2.0)]
    there += [replace(row, op="turn") for row in there]
    elsewhere = [replace(row, op=op, machine="Z 9", threads=3) for row in there[:2] for op in ("spin", "wind")]
    lines = make_block("glance", [*elsewhere, *there]).splitlines()[4:]
    assert [line.split(" | ")[2] for line in lines] == ["1", "1", "1 (Z 9, 3 threads)"]
    assert [line.split("`")[1] for line in lines] == ["spin", "turn", "wind"]


def test_a_block_is_replaced_and_the_text_around_it_stays() -> None:
    page = "before\n\n<!-- begin times spin -->\nold\n<!-- end -->\n\nafter\n"
    assert fill(page, []) == page.replace("old", f"\n{NOTHING}\n")
    with pytest.raises(ValueError, match="expected glance, steps, .* got shapes"):
        fill(page.replace("times spin", "shapes"), [])
