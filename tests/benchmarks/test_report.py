"""The benchmarks' report, growth, comparison and floors on the CPU, from planted results. No time is ever asserted."""

import dataclasses
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks
from benchmarks import __main__ as command_line
from benchmarks import compare, glance, run
from benchmarks.floors.cpu import Floor, Rates, cpu_floor_lines, find_floors, measure_rates
from benchmarks.growth import find_series, fit_exponent, growth_lines, split_case
from benchmarks.harness import Case, load_op
from benchmarks.page import write_page
from benchmarks.report import Row, describe_system, instruction_set, last_runs, read_csv, update_csv
from tests.benchmarks.test_harness import make_row
from tests.helpers import INSTRUCTION_SETS

ours = partial(make_row, provider="ours", per_ours=1.0)
rival = partial(make_row, provider="rival")


def planted_series() -> list[Row]:
    """Rows of a rival with exponents 2 and 3 in time and memory, and of ours with 1.5 and 1."""
    sizes = (100, 400, 1600)
    return [
        *(
            ours(case=f"even-{n}x8", median_ms=n**1.5, p20_ms=n**1.5, p80_ms=2 * n**1.5, peak_extra_mb=float(n))
            for n in sizes
        ),
        *(
            rival(
                case=f"even-{n}x8",
                median_ms=3.0 * n**2,
                p20_ms=2.0 * n**2,
                p80_ms=4.0 * n**2,
                peak_extra_mb=float(n**3),
                per_ours=3 * n**0.5,
            )
            for n in sizes
        ),
        rival(case="even-100x8", mode="forward", median_ms=1.0, per_ours=1.0),
        rival(case="even-6400x8", status="skipped: <too> large"),
        make_row(case="even-1600x8", provider="lost", status="WRONG: output & gradient"),
        make_row(case="even-1600x8", provider="product", mode="forward", median_ms=1.0, per_ours=0.5, gflop_per_s=1.0),
        ours(case="odd-100x8", median_ms=1.0),
        rival(case="odd-100x8", median_ms=0.5, per_ours=0.5),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain-2048x128", ("plain-Nx128", 2048)),
        ("bank10000-k20-64x128", ("bank10000-k20-Nx128", 64)),
        ("random-20000x64-k40-20-iterations", ("random-Nx64-k40-20-iterations", 20000)),
        ("hadis", None),
    ],
)
def test_series_is_the_name_without_its_rows(name: str, expected: tuple[str, int] | None) -> None:
    assert split_case(name) == expected


def test_exponents_are_those_of_the_planted_power_laws() -> None:
    assert fit_exponent([100, 400, 1600], [7 * n**2.25 for n in (100, 400, 1600)]) == pytest.approx(2.25)
    assert fit_exponent([100], [1.0]) is None
    (lines,) = (growth_lines(planted_series()),)
    assert lines == [
        "even-Nx8, N from 100 to 1600: exponents of N in time and memory",
        "  ours    1.50   1.00",
        "  rival   2.00   3.00",
    ]


def test_memory_that_is_noise_has_no_exponent() -> None:
    rows = [ours(case=f"even-{n}x8", median_ms=1.0, peak_extra_mb=0.001 * n) for n in (100, 400)]
    assert growth_lines(rows)[1].split() == ["ours", "0.00"]


def test_a_case_with_forward_only_stands_beside_one_with_both() -> None:
    rows = [ours(case=f"fast-{n}x8", mode="forward", median_ms=1.0) for n in (1, 2)]
    rows += [ours(case="slow-1x8", median_ms=1.0), ours(case="slow-1x8", mode="forward", median_ms=1.0)]
    assert list(find_series(rows)) == ["fast-Nx8"]


# The report


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "machine.csv"
    update_csv(path, planted_series())
    return path


def test_report_of_a_csv_needs_no_other_file(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    assert command_line.main(["--from", str(results), "--out", str(results.parent)]) == 0
    path = results.with_suffix(".html")
    assert f"report: {path}" in capsys.readouterr().out
    page = path.read_text()
    assert not re.search(r"https?:|<link|<script|@import|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2  # ratios, growth
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "<tr class=wrong>" in page
    assert "WRONG: output &amp; gradient" in page
    assert "skipped: &lt;too&gt; large" in page
    assert "<td class=text>rival</td><td>2.00</td><td>3.00</td>" in page
    opening, _, folded = page.partition("<details>")
    assert "<p>A 1, " in opening  # the machine
    assert "<td class=text>spin, even-1600x8</td>" in opening
    assert 'name="viewport"' in opening
    assert "<summary>spin</summary>" in folded
    assert "<summary>" not in opening
    assert page.count("<div class=wide><table>") == page.count("<table>")
    assert page.count("<details>") == page.count("</details>") == 2
    assert results.name in page


def test_report_without_matplotlib_says_so_and_has_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.figures", raising=False)
    monkeypatch.delattr(benchmarks, "figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_page(tmp_path / "report.html", planted_series(), {"command": "run <it>"})
    page = (tmp_path / "report.html").read_text()
    assert "<img" not in page
    assert "WRONG: output &amp; gradient" in page
    assert "run &lt;it&gt;" in page
    assert "no pictures in the report: " in capsys.readouterr().out


def test_a_line_of_each_op_names_the_best_rival_and_the_floor() -> None:
    rows = [
        dataclasses.replace(row, floor_ms=16_000.0, per_floor=4.0) if row.provider == "ours" else row
        for row in planted_series()
    ]
    rows.append(make_row(case="even-1600x8", provider="better rival", median_ms=128_000.0, per_ours=2.0))
    titles, _, line = glance.glance_table(rows).splitlines()
    assert len(titles.split("|")) == len(line.split("|"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "`spin`, even-1600x8"
    assert cells[2:] == ["6.4e+04", "1.6e+04", "4", "better rival", "2", "1.50, 1.00"]


def test_ratios_are_those_of_the_largest_case_of_the_longest_series(results: Path) -> None:
    figures = pytest.importorskip("benchmarks.figures", reason="needs the extra `plot`", exc_type=ImportError)
    rows = planted_series()
    (shown,) = glance.find_headlines(rows)
    assert [(row.case, row.provider) for row in shown] == [("even-1600x8", "rival")]
    single = [make_row(case=f"{case}x8", provider="rival", per_ours=2.0) for case in ("k10-200", "k40-900", "k20-300")]
    assert [row.case for block in glance.find_headlines(single) for row in block] == ["k40-900x8"]
    steps = [
        make_row(case=f"{method}-256x8x8", provider=provider, mode=mode, median_ms=1.0, per_ours=ratio)
        for method in ("hadis", "clc")
        for provider, ratio in (("fused", 1.0), ("reference", 1.5))
        for mode in ("forward", "step")
    ]
    shown = [row for block in glance.find_headlines(steps) for row in block]
    assert [(row.case, row.provider, row.mode) for row in shown] == [
        ("hadis-256x8x8", "reference", "step"),
        ("clc-256x8x8", "reference", "step"),
    ]
    slower = [dataclasses.replace(row, op="lost", per_ours=0.5) for row in rows if row.provider == "rival"]
    axes = figures.draw_ratios([*rows, *slower]).axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert sorted(bars) == [(1, -0.5), (1, pytest.approx(119))]
    assert len({bar.get_facecolor() for bar in axes.patches}) == 2
    picture = results.with_suffix(".svg")
    assert figures.main([str(results), str(picture)]) == 0
    first = picture.read_bytes()
    assert figures.main([str(results), str(picture)]) == 0
    assert picture.read_bytes() == first


def test_a_run_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load_op("batch_hard_mining")
    monkeypatch.setattr(module, "PROVIDERS", {name: module.PROVIDERS[name] for name in ("ours", "reference")})
    monkeypatch.setattr(module, "SERIES", [case for case in module.CASES if case.name == "random-128x128"])
    monkeypatch.setattr(run, "measure_in_fork", lambda *_: 1.25)
    arguments = ["--op", "batch_hard_mining", "--seconds", "0.1", "--out", str(tmp_path)]
    assert command_line.main(arguments) == 0
    (path,) = tmp_path.glob("*.csv")
    lines = {row.provider: row for row in read_csv(path)}
    assert lines["ours"].peak_extra_mb == 1.25
    page = path.with_suffix(".html").read_text()
    assert "python -m benchmarks --op batch_hard_mining --seconds 0.1" in page
    for name in ("scikit-learn", "lightly", "rates in float32"):
        assert f"<td class=text>{name}</td>" in page
    system = describe_system()
    assert f" of {system['cores']} cores, torch {torch.__version__}, {system['system']}, {system['date']}</p>" in page
    assert "GFLOP/s in products" in capsys.readouterr().out


def test_report_of_no_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["--from", str(tmp_path / "none.csv")])
    assert "--from: expected a CSV of results, got " in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns op, case, .* got a, b"):
        read_csv(tmp_path / "other.csv")


def test_rows_survive_the_file_and_only_the_last_run_counts(tmp_path: Path) -> None:
    path = tmp_path / "machine.csv"
    old = [ours(commit="old", median_ms=2.0, rounds=9), rival(commit="old", median_ms=4.0)]
    new = [ours(commit="new", median_ms=1.0), ours(case="other", commit="old", median_ms=1.0)]
    update_csv(path, [*old, *new])
    assert read_csv(path) == [*old, *new]
    assert last_runs(read_csv(path)) == new
    header, *lines = path.read_text().splitlines()
    cut = [",".join(line.split(",")[:-2]) for line in (header, *lines)]  # written before there were floors
    path.write_text("\n".join(cut) + "\n")
    assert read_csv(path) == [*old, *new]


def test_growth_has_a_picture_of_what_was_measured_only() -> None:
    figures = pytest.importorskip("benchmarks.figures", reason="needs the extra `plot`", exc_type=ImportError)
    rows = planted_series()
    both = figures.draw_growth("even", find_series(rows)["even-Nx8"])
    assert [axes.get_ylabel() for axes in both.axes] == ["ms", "MB, 0.5 at least"]
    assert len({line.get_color() for line in both.axes[0].lines}) == 2
    without_memory = [dataclasses.replace(row, peak_extra_mb=None) for row in rows]
    alone = figures.draw_growth("even", find_series(without_memory)["even-Nx8"])
    assert [axes.get_ylabel() for axes in alone.axes] == ["ms"]
    assert figures.as_svg(alone).startswith(b"<?xml")


# The comparison


def run_of(**changes: Any) -> list[Row]:
    """Rows of one case, ours as fast as the yardstick and half as slow as a rival."""
    changes = {"median_ms": 1.0, "per_yardstick": 1.0, **changes}
    slower = changes["per_yardstick"]
    return [
        make_row(provider="product", mode="forward", median_ms=1.0, gflop_per_s=1.0),
        ours(mode="forward", **changes),
        rival(mode="forward", median_ms=2.0, per_ours=2.0 / slower),
    ]


@pytest.mark.parametrize(
    ("new", "status", "message"),
    [
        (run_of(per_yardstick=1.09), 0, "1.090"),
        (run_of(median_ms=5.0), 0, "1.000"),  # the machine is slower, ours is not
        (run_of(per_yardstick=1.2), 1, "1.200      slower than 1.1 times"),
        (run_of(per_yardstick=0.5), 0, "0.500"),
        (run_of(per_yardstick=1.0)[2:], 1, "missing"),
        ([make_row(mode="forward", status="WRONG: output is off")], 1, "WRONG: output is off"),
        ([ours(mode="forward", median_ms=1.0)], 1, "nothing timed beside"),
    ],
)
def test_comparison_fails_on_a_slowdown_and_on_what_is_missing(
    new: list[Row], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "old.csv", tmp_path / "new.csv"]
    update_csv(paths[0], run_of())
    update_csv(paths[1], new)
    assert compare.main([str(path) for path in paths]) == status
    assert message in capsys.readouterr().out


def test_one_rival_that_changed_does_not_decide() -> None:
    before = [*run_of(), rival(provider="second", mode="forward", median_ms=3.0, per_ours=3.0)]
    after = [dataclasses.replace(row, per_ours=1.0) if row.provider == "rival" else row for row in before]
    assert [slowdown for _, slowdown, _ in compare.compare(before, after, 1.1)] == [1.0]


def test_two_commits_of_one_file_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "machine.csv"
    for commit, slower in (("aaa1", 1.0), ("bbb2", 1.5), ("ccc3", 1.0)):
        update_csv(path, [dataclasses.replace(row, commit=commit) for row in run_of(per_yardstick=slower)])
    assert compare.main([str(path), str(path), "--old-commit", "aaa"]) == 0
    assert compare.main([str(path), str(path), "--old-commit", "aaa", "--new-commit", "bbb"]) == 1
    slack = ["--old-commit", "aaa", "--new-commit", "bbb", "--slowdown", "1.6"]
    assert compare.main([str(path), str(path), *slack]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slowdown", "0.9"], "--slowdown: expected 1 or more, got 0.9"),
        (["--old-commit", "zzz"], "OLD.csv: expected times of ours, got none in "),
    ],
)
def test_a_comparison_that_means_nothing_is_refused(
    arguments: list[str], message: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compare.main([str(results), str(results), *arguments])
    assert message in capsys.readouterr().err


# Floors on the CPU


def case_named(op: str, name: str) -> Case:
    (case,) = (case for case in load_op(op).CASES if case.name == name)
    return case


def floors_of(op: str, name: str, dtype: torch.dtype = torch.float32) -> dict[str, Floor]:
    module, case = load_op(op), case_named(op, name)
    inputs = case.inputs(dtype, "cpu")
    output = case.bind(module.PROVIDERS["ours"].load())(*inputs)
    return find_floors(module, case, inputs, output, str(dtype).removeprefix("torch."))


def test_floors_count_products_once_and_what_goes_in_and_out() -> None:
    size = 128 * 128 * 4  # of a matrix of inputs
    loss = floors_of("fused_hsd_loss", "random-128x128")
    assert loss["forward"] == Floor(2 * 2 * 128**3, 2 * size + 4)
    assert loss["backward"] == Floor(0, 3 * size + 4)  # the student's gradient alone
    assert loss["both"] == Floor(2 * 2 * 128**3, 5 * size + 8)
    assert floors_of("fused_hsd_loss", "random-128x128", torch.bfloat16)["forward"].bytes == size + 2
    assert floors_of("fused_hsd_loss", "random-128x128", torch.float64)["forward"].bytes == 4 * size + 8
    plain = floors_of("fused_contrastive_loss", "plain-128x128")
    assert plain["forward"] == Floor(2 * 256 * 256 * 128, 2 * size + 4)
    assert plain["backward"] == Floor(2 * plain["forward"].flops, 4 * size + 4)
    scores = 256 * 10 * 4
    assert floors_of("sinkhorn_knopp", "t3-256x10") == {"forward": Floor(0, 2 * scores)}
    nearest = floors_of("nearest_neighbors", "bank4096-k10-64x128")["forward"]
    assert nearest == Floor(2 * 64 * 4096 * 128, (64 + 4096) * 128 * 4 + 64 * 10 * 12)
    one_step, two_steps = (
        floors_of("diffused_neighbor_gather", f"bank10000-k10{steps}-256x128")["forward"] for steps in ("", "-t2")
    )
    assert (one_step.flops, two_steps.flops) == (2 * 256 * 10_000 * 128, 2 * 2 * 256 * 10_000 * 128)
    # Neither a bank nor its copy is read where the query itself is the sample.
    assert floors_of("diffused_neighbor_gather", "self-256x256")["forward"] == Floor(0, 2 * 256 * 256 * 4 + 256 * 8)


def test_each_further_pass_reads_what_no_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = 256 * 10 * 4
    for cache, again in ((None, 0), (2 * scores, 0), (scores - 100, 3 * 100)):
        monkeypatch.setattr("benchmarks.floors.cpu.cache_bytes", lambda cache=cache: cache)
        assert floors_of("sinkhorn_knopp", "t3-256x10") == {"forward": Floor(0, 2 * scores + again)}
    assert floors_of("nearest_neighbors", "bank4096-k10-64x128")["forward"].bytes == (64 + 4096) * 512 + 64 * 10 * 12


def test_floor_is_the_longer_of_operations_and_bytes() -> None:
    rates = Rates(flops=2e9, bytes=1e9)
    floors = {"forward": Floor(4_000_000, 1_000_000), "backward": Floor(0, 3_000_000)}
    assert [floor.milliseconds(rates) for floor in floors.values()] == pytest.approx([2.0, 3.0])
    assert cpu_floor_lines(floors, rates, {"forward": 5.0}) == [
        "floor of forward: 0.004 GFLOP, 1 MB, 2 ms; ours / floor 2.5",
        "floor of backward: 0 GFLOP, 3 MB, 3 ms",
    ]
    measured = measure_rates(torch.float32)
    assert 1e8 < measured.bytes < 1e13
    assert 1e8 < measured.flops < 1e15


def test_results_name_the_instruction_set_that_runs() -> None:
    assert instruction_set("cpu") in INSTRUCTION_SETS
    assert instruction_set("cuda") == ""
    both = [ours(instruction_set=name, commit=name) for name in ("AVX2", "AVX512")]
    assert last_runs(both) == both  # one does not replace the other
