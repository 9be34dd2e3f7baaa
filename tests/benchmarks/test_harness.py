"""The benchmark harness: its statistics, its gate, what it writes. No time is ever asserted."""

import csv
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import features, hadis_ablation, report, run
from benchmarks.clock import paired_ratio, summarize
from benchmarks.floors import BF16
from benchmarks.harness import (
    Case,
    Provider,
    admit,
    cases_of,
    error,
    find_fault,
    load_op,
    modes_of,
    op_names,
    providers_of,
)
from benchmarks.inputs import cluster_labels
from benchmarks.memory import measure_in_fork
from benchmarks.report import (
    COLUMNS,
    KEY,
    Row,
    Setting,
    csv_path,
    format_table,
    machine_name,
    read_csv,
    slug,
    update_csv,
)
from deepclust_ext import batch_hard_mining, fused_hsd_loss, reference

SETTING = Setting(
    machine="A 1", instruction_set="AVX2", device="cpu", threads=2, torch="2.13.0", commit="abc", dtype="float32"
)
OTHER_SIZES = ("queue", "bank", "centroids", "weight", "teacher_weight", "distribution", "pair_weights")


def make_row(**changes: Any) -> Row:
    row = Row(op="spin", case="tiny", provider="ours", mode="both", status="ok", **dataclasses.asdict(SETTING))
    return dataclasses.replace(row, **changes)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the compiled reference out: the C++ compiler behind it is slow, and not what is tested here."""
    for op in op_names():
        module = load_op(op)
        rest = {name: provider for name, provider in module.PROVIDERS.items() if not provider.compiled}
        monkeypatch.setattr(module, "PROVIDERS", rest)


def test_percentiles_are_in_milliseconds() -> None:
    summary = summarize([0.001, 0.002, 0.003, 0.004, 0.100, 0.006])
    assert (summary.median_ms, summary.p20_ms, summary.p80_ms) == pytest.approx((3.5, 2.0, 6.0))


def test_ratio_is_taken_round_by_round() -> None:
    # The machine slows down tenfold in the second round; the ratio of the medians would be 2.
    assert paired_ratio([3.0, 30.0, 3.0], [1.0, 10.0, 1.5]) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AMD EPYC 9R14", "amd-epyc-9r14"),
        ("Intel(R) Xeon(R) Platinum 8488C @ 2.40GHz", "intel-xeon-platinum-8488c"),
        ("NVIDIA H200", "nvidia-h200"),
        ("  /weird\\__name!  ", "weird-name"),
    ],
)
def test_slug(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_file_is_named_after_machine_instruction_set_and_threads(tmp_path: Path) -> None:
    assert csv_path(tmp_path, SETTING) == tmp_path / "a-1-avx2-2-threads.csv"
    assert csv_path(tmp_path, dataclasses.replace(SETTING, threads=1)).name == "a-1-avx2-1-thread.csv"
    assert (
        csv_path(tmp_path, dataclasses.replace(SETTING, machine="NVIDIA H200", device="cuda")).name == "nvidia-h200.csv"
    )
    assert slug(machine_name("cpu"))


def test_committed_results_have_the_stated_columns_and_names() -> None:
    paths = set((report.ROOT / "benchmarks" / "results").glob("*.csv")) - {features.RESULTS, hadis_ablation.RESULTS}
    assert paths
    for path in paths:
        names = list(read_rows(path)[0])
        assert names == COLUMNS[: len(names)]  # an older file lacks the newest columns until it is next written
        for row in read_csv(path):
            setting = Setting(**{f.name: getattr(row, f.name) for f in dataclasses.fields(Setting)})
            assert csv_path(path.parent, setting) == path


def test_file_keeps_rows_with_another_key_and_replaces_the_same(tmp_path: Path) -> None:
    path = tmp_path / "results" / "machine.csv"
    update_csv(path, [make_row(median_ms=1.0), make_row(commit="old", median_ms=2.0)])
    update_csv(path, [make_row(median_ms=3.14159), make_row(mode="forward")])
    lines = read_rows(path)
    assert [(line["commit"], line["mode"], line["median_ms"]) for line in lines] == [
        ("abc", "both", "3.142"),
        ("old", "both", "2"),
        ("abc", "forward", ""),
    ]
    assert list(lines[0]) == COLUMNS
    assert set(KEY) < set(COLUMNS)


def test_commit_is_unknown_outside_git(tmp_path: Path) -> None:
    assert report.current_commit(tmp_path) == "unknown"


def test_table_is_aligned_and_says_why_a_row_is_empty() -> None:
    rows = [make_row(median_ms=1.5), make_row(provider="a longer name", status="WRONG: output is off")]
    title, first, second = format_table(rows, "two products").splitlines()
    assert title.split()[:7] == ["provider", "mode", "ms", "p20", "p80", "/", "ours"]
    assert first.index("1.5") + len("1.5") == title.index("ms") + len("ms")
    assert second.startswith("a longer name  both")
    assert second.endswith("  WRONG: output is off")


def test_error_leaves_out_a_few_rows_only() -> None:
    truth = torch.ones(100, 4, dtype=torch.float64)
    flipped = truth.float()
    flipped[:2] = 7.0
    assert error(flipped, truth) == 0.0
    flipped[2] = 1.5
    assert error(flipped, truth) == pytest.approx(0.05)
    flipped[3, 0] = torch.nan
    assert error(flipped, truth) == float("inf")
    assert error(flipped.view(4, 25, 4), truth.view(4, 25, 4)) == float("inf")
    flipped[2:4] = 1.0
    assert error(flipped.view(4, 25, 4), truth.view(4, 25, 4)) == 0.0  # rows of all problems, not problems
    assert error(torch.tensor(1.5), torch.tensor(1.0, dtype=torch.float64)) == pytest.approx(0.5)
    assert error(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 9, 2, 3])) == 0.0
    assert error(torch.tensor([0, 1, 2, 3]), torch.tensor([8, 9, 9, 3])) == pytest.approx(0.5)


def test_budget_is_twice_the_error_of_the_reference() -> None:
    truth = {"output": torch.tensor(1.0, dtype=torch.float64)}
    naive = {"output": torch.tensor(1.1)}
    assert find_fault({"output": torch.tensor(0.81)}, naive, truth, torch.float32) is None
    fault = find_fault({"output": torch.tensor(1.3)}, naive, truth, torch.float32)
    assert fault == "WRONG: output is off by 3.0e-01, allowed 2.0e-01"
    assert (
        find_fault({"output": torch.tensor(1.3)}, naive, truth, torch.bfloat16) is None
    )  # coarse types have more slack


@pytest.mark.usefixtures("without_compiler")
def test_quick_run_of_everything_passes_its_checks_and_writes_a_valid_file(tmp_path: Path) -> None:
    assert command_line.main(["--quick", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    rows = read_csv(path)
    assert {row.op for row in rows} == {*op_names(), *command_line.BEYOND_OPS} - command_line.BY_NAME_ALONE
    for row in rows:
        assert row.status == "ok" or row.status.startswith(("not installed: ", "skipped: ")), row
        assert row.status == "ok" or row.provider != "ours"
        numbers = [value for value in dataclasses.asdict(row).values() if isinstance(value, float | int)]
        assert all(value > 0 for value in numbers), row
        assert (row.median_ms is not None) == (row.status == "ok")
    for row in rows:
        if row.provider == "ours":
            assert row.floor_ms is not None
            assert row.per_floor == pytest.approx((row.median_ms or 0) / row.floor_ms, rel=2e-3)  # as rounded


@pytest.mark.usefixtures("without_compiler")
def test_quick_run_writes_the_stated_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    arguments = ["--op", "fused_hsd_loss", "batch_hard_mining", "--quick", "--out", str(tmp_path)]
    assert command_line.main([*arguments, "--threads", str(threads)]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.endswith(f"-{threads}-thread{'s' if threads > 1 else ''}.csv")
    lines = read_rows(path)
    assert list(lines[0]) == COLUMNS
    assert {(line["op"], line["provider"], line["mode"]) for line in lines} == {
        *((op, "two products", "forward") for op in ("fused_hsd_loss", "batch_hard_mining")),
        *(("fused_hsd_loss", name, m) for name in ("ours", "reference") for m in ("forward", "backward", "both")),
        *(("batch_hard_mining", name, "forward") for name in ("ours", "reference")),
    }
    for line in lines:
        assert (line["status"], line["rounds"], line["torch"]) == ("ok", "3", torch.__version__)
        assert float(line["p20_ms"]) <= float(line["median_ms"]) <= float(line["p80_ms"])
        assert float(line["per_yardstick"]) > 0
    printed = capsys.readouterr().out
    assert "fused_hsd_loss random-128x128, two products: 0.008389 GFLOP" in printed
    assert str(path) in printed


@pytest.mark.usefixtures("without_compiler")
def test_wrong_and_missing_providers_are_named_and_not_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_missing() -> Any:
        raise ImportError("No module named 'rival'")

    module = load_op("fused_hsd_loss")
    rivals = {
        "hot": Provider(lambda: lambda teacher, student: fused_hsd_loss(teacher, student, temperature=0.6)),
        "detached": Provider(lambda: lambda t, s: fused_hsd_loss(t, s).detach()),
        "doubled": Provider(lambda: lambda t, s: (loss := fused_hsd_loss(t, s)) + loss - loss.detach()),
        "rival": Provider(load_missing),
    }
    monkeypatch.setattr(module, "PROVIDERS", {**module.PROVIDERS, **rivals})
    assert command_line.main(["--op", "fused_hsd_loss", "--quick", "--out", str(tmp_path)]) == 1
    (path,) = tmp_path.iterdir()
    lines = {(line["provider"], line["mode"]): line for line in read_rows(path)}
    assert lines["hot", "both"]["status"].startswith("WRONG: output is off by ")
    assert lines["detached", "both"]["status"].startswith("WRONG: gradient of input 1 is off by inf")
    assert lines["doubled", "both"]["status"].startswith("WRONG: gradient of input 1 is off by ")
    assert lines["rival", "both"]["status"] == "not installed: No module named 'rival'"
    assert lines["ours", "both"]["status"] == "ok"
    assert not any(lines[name, "both"]["median_ms"] for name in rivals)
    assert not any((name, "forward") in lines for name in rivals)
    assert "WRONG: output is off by" in capsys.readouterr().out


def test_unknown_op_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["--op", "spin"])
    assert f"--op: expected some of {', '.join(op_names())}" in capsys.readouterr().err


@pytest.mark.parametrize("op", op_names())
def test_every_op_states_what_the_harness_needs(op: str) -> None:
    module = load_op(op)
    assert next(iter(module.PROVIDERS)) == "ours"
    assert module.TRUTH is getattr(reference, op)
    assert isinstance(module.FOLLOWS_PRECISION, bool)
    for cases in (module.CASES, module.CUDA_CASES):
        assert len({case.name for case in cases}) == len(cases)
    for case in (*module.CASES, *module.CUDA_CASES):
        assert (case.checked_rows or 1) < case.rows
        assert set(case.skip) <= set(providers_of(module, case))
        modes = tuple(modes_of(module, case))
        assert modes in (("forward",), ("forward", "backward", "both"))
        assert set(modes) - {"both"} == set(case.works or module.WORK)
        inputs = case.inputs(torch.float32, "cpu", rows=4)
        names = [*[""] * (len(inputs) - len(case.keywords)), *case.keywords]
        assert all(x.shape[-2] == 4 for x, name in zip(inputs, names, strict=True) if name not in OTHER_SIZES)
        case.bind(inspect.signature(module.TRUTH).bind)(*inputs)


def test_distant_case_has_the_clusters_as_its_classes() -> None:
    """What makes the miner of pytorch-metric-learning comparable: both sides mine in the same two sets."""
    (case,) = (case for case in load_op("batch_hard_mining").CASES if case.name == "distant-256x256")
    pairs = batch_hard_mining(*case.inputs(torch.float32, "cpu"))
    labels = cluster_labels(case.rows)
    assert torch.equal(labels[pairs.positive_index], labels)
    assert not (labels[pairs.negative_index] == labels).any()


@pytest.mark.parametrize(
    ("name", "package", "op", "case"),
    [
        ("pytorch-metric-learning", "pytorch_metric_learning", "batch_hard_mining", "distant-256x256"),
        ("pytorch-metric-learning", "pytorch_metric_learning", "fused_contrastive_loss", "plain-128x128"),
        ("lightly", "lightly.loss.ntx_ent_loss", "fused_contrastive_loss", "plain-128x128"),
        ("POT", "ot.batch", "sinkhorn_knopp", "t3-256x10"),
        ("faiss", "faiss", "nearest_neighbors", "bank4096-k10-64x128"),
        ("POT", "ot.batch", "sinkhorn_knopp", "batch-256x16"),
    ],
)
def test_rival_passes_the_gate_where_it_is_installed(name: str, package: str, op: str, case: str) -> None:
    pytest.importorskip(package, reason="needs the extra `bench`", exc_type=ImportError)
    module = load_op(op)
    (found,) = (one for one in module.CASES if one.name == case)
    others = set(providers_of(module, found)) - {name}
    only = dataclasses.replace(found, skip=dict.fromkeys(others, "skipped: not the question"))
    fit, _ = admit(module, only, only.inputs(torch.float32, "cpu"))
    assert list(fit) == [name]


def test_cases_of_nearest_neighbors() -> None:
    op = load_op("nearest_neighbors")
    cases = {case.name: case for case in op.CUDA_CASES}
    assert {name: case.checked_rows for name, case in cases.items()} == {
        "bank100000-k50-256x128": None,
        "bank1000000-k50-1024x128": 134,
        "bank250000-k10-4096x256": 536,
        "bank100000-k256-16384x128": 1342,
    }
    case = cases["bank100000-k50-256x128"]
    assert case.works is not None
    work = case.works["forward"](case.rows, case.dims, "bfloat16")
    assert work.flops == {BF16: case.bind(op.YARDSTICK.flops)(*case.inputs(torch.float32, "cpu"))}
    assert work.bytes == 2 * 128 * (256 + 100_000) + 256 * 50 * (2 + 8)


def contrastive_case(name: str, **changes: Any) -> Case:
    (case,) = (case for case in load_op("fused_contrastive_loss").CASES if case.name == name)
    return dataclasses.replace(case, **changes)


@pytest.mark.parametrize(
    "form", ["plain-128x128", "hard-256x128", "sharp-2048x128", "classes-256x128", "queue-256x128"]
)
def test_every_form_of_the_contrastive_loss_is_what_the_reference_computes(form: str) -> None:
    module = load_op("fused_contrastive_loss")
    case = contrastive_case(form)
    inputs = case.inputs(torch.float32, "cpu", rows=16)
    only = dataclasses.replace(case, skip=dict.fromkeys({*module.PROVIDERS, *case.rivals} - {"ours"}, "skipped"))
    assert list(admit(module, only, inputs)[0]) == ["ours"]
    loss = case.bind(module.TRUTH)(*inputs)
    plain = module.TRUTH(*inputs[:2])
    assert (abs(loss - plain) < 1e-6) == (form == "plain-128x128")  # options and keywords arrive
    anchors, columns = (16, 65536) if form == "queue-256x128" else (32, 32)
    assert case.bind(module.YARDSTICK.flops)(*inputs) == 2 * anchors * columns * 128


def test_rivals_of_a_case_get_the_inputs_alone() -> None:
    module = load_op("fused_contrastive_loss")
    given: list[int] = []

    def rival(*inputs: torch.Tensor) -> torch.Tensor:
        given.append(len(inputs))
        return inputs[0].sum()

    case = contrastive_case("classes-256x128", rivals={"rival": Provider(lambda: rival)})
    providers_of(module, case)["rival"].load()(*case.inputs(torch.float32, "cpu", rows=4))
    assert given == [4]


@pytest.mark.usefixtures("without_compiler")
def test_cost_of_hardness_is_measured_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hard = contrastive_case("hard-256x128")
    assert hard.options == {"hardness": 1.0}
    (name,) = hard.beside

    def without_options(z_a: torch.Tensor, z_b: torch.Tensor) -> Any:
        return hard.beside[name](z_a, z_b)

    monkeypatch.setattr(
        load_op("fused_contrastive_loss"), "CASES", [dataclasses.replace(hard, beside={name: without_options})]
    )
    assert command_line.main(["--op", "fused_contrastive_loss", "--quick", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    lines = {(line["provider"], line["mode"]): line for line in read_rows(path)}
    for mode in ("forward", "backward", "both"):
        assert lines["ours, hardness 0", mode]["status"] == "ok"
        assert float(lines["ours, hardness 0", mode]["per_ours"]) > 0


@pytest.mark.usefixtures("without_compiler")
def test_missing_rival_of_a_case_for_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_missing() -> Any:
        raise ImportError("No module named 'rival'")

    monkeypatch.setattr(run, "measure_in_fork", lambda op, case, provider, *_: len(provider))
    module = load_op("fused_contrastive_loss")
    case = contrastive_case(
        "plain-16384x128", rivals={"rival": Provider(load_missing)}, skip={"reference": "skipped: x"}
    )
    small = dataclasses.replace(case, make=lambda rows, dims: case.make(4, dims))
    rows, floors = run.run_case("fused_contrastive_loss", module, small, SETTING, None, 0, memory=True)
    assert floors == []
    assert {row.provider: (row.status, row.peak_extra_mb) for row in rows} == {
        "ours": ("memory only", 4),
        "reference": ("skipped: x", None),
        "rival": ("not installed: No module named 'rival'", None),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="resets the peak through /proc")
def test_memory_of_the_reference_grows_with_the_square() -> None:
    """The reference holds several N x N matrices of 4 MB; ours holds none."""
    theirs, ours = (
        measure_in_fork("batch_hard_mining", "random-1024x256", name, "float32", 1) for name in ("reference", "ours")
    )
    assert theirs > 2 * 4.19
    assert ours < theirs / 2


def test_pytest_benchmark_has_every_case() -> None:
    pytest.importorskip("pytest_benchmark", reason="needs the extra `bench`")
    from benchmarks.test_benchmarks import combinations

    ids = {combination.id for combination in combinations()}
    for op in op_names():
        for case in cases_of(load_op(op), "cpu"):
            assert (f"{op}-{case.name}-forward-ours" in ids) != case.memory_only
