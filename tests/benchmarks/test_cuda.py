"""What the benchmarks do for a GPU, as far as can be shown without one: a simulated queue stands in for its clock."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command_line
from benchmarks import clock, memory
from benchmarks.floors import BF16, CARDS, CUDA_SIZES, FP16X3, TF32, TF32X3, floor_lines
from benchmarks.floors import contrastive as contrastive
from benchmarks.floors import mining as mining_model
from benchmarks.floors.mining import gradient_work, mining_work
from benchmarks.floors.tables import FLOOR_TABLES
from benchmarks.harness import Case, Provider, admit, float32_products, load_op
from benchmarks.report import ROOT
from deepclust_ext import _extension, batch_hard_mining, reference
from tests.benchmarks.test_harness import read_rows

H200 = CARDS["NVIDIA H200"]


class Queue:
    """A GPU's queue: work takes time of its own clock, and an event has a time once somebody has waited for it."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self.waited = -1.0
        self.calls: list[str] = []

    def work(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.calls.append(name)

    def make_event(self, *, enable_timing: bool) -> "QueuedEvent":
        assert enable_timing
        return QueuedEvent(self)


class QueuedEvent:
    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.at: float | None = None

    def record(self) -> None:
        self.at = self.queue.now

    def synchronize(self) -> None:
        assert self.at is not None
        self.queue.waited = max(self.queue.waited, self.at)

    def elapsed_time(self, end: "QueuedEvent") -> float:
        assert self.at is not None
        assert end.at is not None
        assert end.at <= self.queue.waited, "read before the queue got there"
        return 1e3 * (end.at - self.at)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    monkeypatch.setattr(torch.cuda, "Event", made.make_event)
    return made


def make_loss(queue: Queue, forward: float, backward: float) -> Callable[[Tensor], Tensor]:
    """Return an op whose passes take these seconds, and which refuses to add to an old gradient."""

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            queue.work("forward", forward)
            return x.sum()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            assert leaf.grad is None
            queue.work("backward", backward)
            return grad.expand(2)

    leaf = torch.empty(0)

    def loss(x: Tensor) -> Tensor:
        nonlocal leaf
        leaf = x
        apply: Any = Loss.apply  # typed in some versions of torch and not in others
        result: Tensor = apply(x)
        return result

    return loss


def test_sample_is_per_call_and_both_passes_alternate_in_their_own_stretch(queue: Queue) -> None:
    loss = make_loss(queue, forward=30e-6, backward=70e-6)
    x = torch.ones(2, requires_grad=True)
    sample = clock.take_device_sample(loss, (x,), ("forward", "backward", "both"), repeats=3)
    assert sample == pytest.approx({"forward": 30e-6, "backward": 70e-6, "both": 100e-6})
    assert queue.calls == ["forward"] * 3 + ["backward"] * 3 + ["forward", "backward"] * 3


def test_stretches_are_as_long_as_events_need(queue: Queue) -> None:
    first = [5e-3]  # the first call compiles

    def quick(x: Tensor) -> None:
        queue.work("quick", 30e-6 + (first.pop() if first else 0))

    calls = {"quick": quick, "slow": lambda x: queue.work("slow", 2e-3)}
    modes = dict.fromkeys(calls, ("forward",))
    rounds = clock.time_rounds(calls, modes, (torch.ones(2),), "cuda", seconds=0)
    assert rounds == {("quick", "forward"): pytest.approx([30e-6] * 3), ("slow", "forward"): pytest.approx([2e-3] * 3)}
    in_last_round = queue.calls[-65:]
    assert (in_last_round.count("quick"), in_last_round.count("slow")) == (64, 1)  # 64 times 30 us, not 32 times


def test_memory_on_cuda_is_the_peak_over_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, requires_grad=True)
    x.grad = torch.ones(2)
    allocated = {"now": 0, "peak": 10**9}  # peak of an earlier call

    def count() -> int:
        assert x.grad is None, "an old gradient would be taken for part of the inputs"
        return 7_000_000

    monkeypatch.setattr(torch.cuda, "memory_allocated", count)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: allocated["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: allocated.update(peak=7_000_000))

    def op(x: Tensor) -> Tensor:
        allocated["peak"] = max(allocated["peak"], 9_500_000)
        return x.sum()

    assert memory.measure_allocated(op, (x,), ("forward", "backward", "both")) == pytest.approx(2.5)
    assert x.grad is not None


@pytest.mark.parametrize("op", ["batch_hard_mining", "fused_hsd_loss"])
def test_cases_cover_sizes_and_distributions(op: str) -> None:
    cases = {case.name: case for case in load_op(op).CUDA_CASES}
    assert next(iter(cases)) == "random-256x128"
    assert set(cases) == {
        *(f"random-{rows}x{dims}" for rows in (256, 1024, 4096, 16384, 65536) for dims in (128, 256)),
        *(f"{kind}-4096x{dims}" for kind in ("clusters", "overlapping", "distant") for dims in (128, 256)),
    }
    assert {name for name, case in cases.items() if case.checked_rows} == {"random-65536x128", "random-65536x256"}
    assert {name for name, case in cases.items() if case.rivals} == (
        {"distant-4096x128", "distant-4096x256"} if op == "batch_hard_mining" else set()
    )


def test_cases_of_the_contrastive_loss_cover_sizes_and_forms() -> None:
    cases = {case.name: case for case in load_op("fused_contrastive_loss").CUDA_CASES}
    assert set(cases) == {
        *(f"plain-{rows}x{dims}" for rows in (128, 512, 2048, 8192, 32768) for dims in (128, 256)),
        *("hard-2048x128", "sharp-2048x128", "classes-2048x128", "queue-256x128"),
    }
    assert {name for name, case in cases.items() if case.checked_rows} == {"plain-32768x128", "plain-32768x256"}
    queue = cases["queue-256x128"]
    assert queue.works is not None
    flops = queue.works["forward"](queue.rows, queue.dims, "bfloat16").flops
    assert flops == {
        BF16: queue.bind(load_op("fused_contrastive_loss").YARDSTICK.flops)(*queue.inputs(torch.float32, "cpu"))
    }


def test_precision_is_what_torch_and_its_compiler_read() -> None:
    with float32_products("high"):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        with float32_products("highest"):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "high"  # would raise after a write to fp32_precision
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.get_float32_matmul_precision() == "highest"


def small_case(**changes: Any) -> Case:
    (case,) = (case for case in load_op("batch_hard_mining").CUDA_CASES if case.name == "random-256x128")
    return dataclasses.replace(case, **changes)


@pytest.fixture
def mining(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the benchmark of batch_hard_mining, with a PROVIDERS of its own to be filled."""
    module = load_op("batch_hard_mining")
    monkeypatch.setattr(module, "PROVIDERS", {})
    return module


def test_rivals_may_round_as_their_type_does_but_ours_may_not(mining: Any) -> None:
    mining.PROVIDERS.update(
        ours=Provider(lambda: reference.batch_hard_mining), reference=Provider(lambda: reference.batch_hard_mining)
    )
    case = small_case()
    fit, excluded = admit(mining, case, case.inputs(torch.bfloat16, "cpu"))
    assert list(fit) == ["reference"]
    assert excluded["ours"].startswith("WRONG: positive_index is off by ")


@pytest.mark.parametrize("follows", [False, True])
def test_ours_is_held_to_full_precision_unless_it_follows_the_setting(
    follows: bool, mining: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.dtype, str]] = []

    def mine(teacher: Tensor, student: Tensor) -> Any:
        seen.append((teacher.dtype, torch.backends.cuda.matmul.fp32_precision))
        return reference.batch_hard_mining(teacher, student)

    monkeypatch.setattr(mining, "TRUTH", mine)
    monkeypatch.setattr(mining, "FOLLOWS_PRECISION", follows)
    case = small_case()
    with float32_products("high"):
        admit(mining, case, case.inputs(torch.float32, "cpu"))
    assert seen == [(torch.float64, "tf32"), (torch.float32, "tf32"), (torch.float32, "tf32" if follows else "ieee")]


def test_case_too_large_for_a_check_is_checked_on_fewer_rows_and_must_run(mining: Any) -> None:
    sizes: dict[str, list[int]] = {"ours": [], "overflows": [], "wrong": [], "large": []}

    def load(name: str, change: Callable[[Any], Any] = lambda pairs: pairs) -> Provider:
        def mine(teacher: Tensor, student: Tensor) -> Any:
            sizes[name].append(len(teacher))
            if name == "large" and len(teacher) == 256:
                raise torch.OutOfMemoryError
            return change(reference.batch_hard_mining(teacher, student))

        return Provider(lambda: mine)

    def overflow(pairs: Any) -> Any:
        large = len(pairs.positive_distance) == 256
        return pairs._replace(positive_distance=pairs.positive_distance / 0) if large else pairs

    mining.PROVIDERS.update(
        ours=load("ours"),
        overflows=load("overflows", overflow),
        wrong=load("wrong", lambda pairs: pairs._replace(positive_distance=pairs.negative_distance)),
        large=load("large"),
    )
    case = small_case(checked_rows=64)
    fit, excluded = admit(mining, case, case.inputs(torch.float32, "cpu"))
    assert list(fit) == ["ours"]
    assert sizes == {"ours": [64, 256], "overflows": [64, 256], "wrong": [64], "large": [64, 256]}
    assert excluded["overflows"] == "WRONG: not finite"
    assert excluded["wrong"].startswith("WRONG: positive_distance is off by ")
    assert excluded["large"] == "skipped: out of memory"


def test_floor_is_operations_or_bytes() -> None:
    work = mining_work(16384, 128, "float32")  # two products of 2 N^2 D, three pieces each, at 790 TFLOP/s
    assert work.flops == {FP16X3: 3 * 2 * 2 * 16384 * 16384 * 128}
    assert work.seconds(H200) == pytest.approx(5.219e-4, rel=1e-3)
    assert mining_work(16384, 128, "bfloat16").seconds(H200) == pytest.approx(5.219e-4 / 3, rel=1e-3)
    # inputs read, rows written and read: 2 matrices of 2 bytes; at 256 rows that takes longer than the products
    assert mining_work(256, 128, "float16").bytes == 3 * 2 * 256 * 128 * 2 + 256 * 100
    assert mining_work(256, 128, "float16").seconds(H200) == pytest.approx(418816 / 4.3e12)
    # with two float16 copies of a float32 row
    assert mining_work(256, 128, "float32").bytes == 2 * 256 * 128 * (4 + 4 + 4 + 4) + 256 * 100
    assert gradient_work(65536, 128, "float32").seconds(H200) == pytest.approx((3 * 65536 * 512 + 6553600) / 4.3e12)


def test_floor_of_the_contrastive_loss() -> None:
    product = 2 * 16384 * 16384 * 128  # of all rows of both views
    forward, backward = contrastive.loss_work(8192, 128, "float32"), contrastive.gradient_work(8192, 128, "float32")
    assert forward.flops == {FP16X3: 3 * product}
    assert backward.flops == {FP16X3: 3 * product, TF32X3: 3 * product}
    assert backward.seconds(H200) == pytest.approx(3 * product / 790e12 + 3 * product / 400e12)
    assert contrastive.gradient_work(8192, 128, "float32-high").flops == {TF32: 2 * product}
    assert contrastive.loss_work(256, 128, "bfloat16", queue=65536).flops == {BF16: 2 * 256 * 65536 * 128}
    # inputs read, packed rows written and read, of 2 bytes each
    assert contrastive.loss_work(128, 128, "float16").bytes == 256 * (128 * 6 + 100)


@pytest.mark.parametrize("dtype", mining_model.PRECISIONS)
def test_nothing_is_predicted_to_beat_its_floor(dtype: str) -> None:
    for rows, dims in CUDA_SIZES:
        predictions = [
            (mining_work(rows, dims, dtype), mining_model.predict_forward(rows, dims, dtype, H200)),
            (contrastive.loss_work(rows // 2, dims, dtype), contrastive.predict_forward(rows // 2, dims, dtype, H200)),
            (
                contrastive.gradient_work(rows // 2, dims, dtype),
                contrastive.predict_backward(rows // 2, dims, dtype, H200),
            ),
        ]
        for work, (seconds, limit) in predictions:
            assert seconds > work.seconds(H200)
            assert limit in ("warps", "L2", "shared")


def test_share_of_the_floor_is_printed_for_known_cards_only() -> None:
    works = {"forward": mining_work, "backward": gradient_work}
    times = {"forward": 1.56576, "backward": 0.06234, "both": 3.2}
    assert floor_lines("NVIDIA H200", works, 16384, 128, "float32", times) == [
        "floor of forward: 412.3 GFLOP in 3xFP16, 68.75 MB, 0.5219 ms; ours / floor 3",
        "floor of backward: 26.8 MB, 0.006234 ms; ours / floor 10",
    ]
    assert floor_lines("NVIDIA H200", works, 16384, 128, "float32", {})[0].endswith(" 0.5219 ms")
    unknown = floor_lines("NVIDIA H200 MIG 1g.18gb", works, 16384, 128, "float32", times)
    assert unknown == ["no floor: the rates of NVIDIA H200 MIG 1g.18gb are not known"]
    assert floor_lines("NVIDIA H200", works, 256, 128, "float64", times) == ["no floor: no rate of float64 is known"]


def test_performance_page_has_the_tables_of_floors(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--floors"]) == 0
    printed = capsys.readouterr().out
    page = (ROOT / "docs" / "performance" / "models.md").read_text()
    assert len(FLOOR_TABLES) >= 6
    for make_table in FLOOR_TABLES.values():
        for name, card in CARDS.items():
            table = make_table(card)
            assert table in printed
            assert (table in page) == (name == "NVIDIA H200")


@pytest.mark.parametrize(
    ("arguments", "gpu", "message"),
    [
        (["--device", "cuda"], False, "--device cuda: torch sees no GPU"),
        (["--device", "cuda"], True, "expected native kernels for cuda, since ours would be the reference, got none"),
        (["--dtype", "float32-high"], True, "--dtype float32-high: a setting of products on CUDA"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str],
    gpu: bool,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset({"cpu"}))
    with pytest.raises(SystemExit):
        command_line.main(arguments)
    assert message in capsys.readouterr().err


@pytest.fixture
def disguised_cpu(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "cuda" be this CPU: inputs stay here, and the clock is the queue's."""
    make = Case.inputs
    monkeypatch.setattr(Case, "inputs", lambda case, dtype, device, rows=None: make(case, dtype, "cpu", rows))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset({"cpu", "cuda"}))


@pytest.mark.usefixtures("disguised_cpu")
def test_command_line_measures_every_dtype_on_a_gpu(
    mining: Any, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: set[tuple[torch.dtype, str]] = set()

    def mine(teacher: Tensor, student: Tensor) -> Any:
        seen.add((teacher.dtype, torch.backends.cuda.matmul.fp32_precision))
        queue.work("mine", 2e-3)
        return batch_hard_mining(teacher, student)

    mining.PROVIDERS.update(ours=Provider(lambda: mine))
    products = dataclasses.replace(mining.YARDSTICK, function=lambda t, s: queue.work("products", 1e-3))
    monkeypatch.setattr(mining, "YARDSTICK", products)
    arguments = [
        "--op",
        "batch_hard_mining",
        "--device",
        "cuda",
        "--quick",
        "--cases",
        "256x128",
        "--out",
        str(tmp_path),
    ]
    assert command_line.main(arguments) == 0
    assert seen == {
        (torch.float32, "ieee"),
        (torch.float32, "tf32"),
        (torch.bfloat16, "ieee"),
        (torch.float16, "ieee"),
    }
    lines = read_rows(tmp_path / "nvidia-h200.csv")
    assert [(line["dtype"], line["provider"], line["median_ms"], line["per_yardstick"]) for line in lines] == [
        (dtype, *row)
        for dtype in ("float32", "float32-high", "bfloat16", "float16")
        for row in (("two products", "1", "1"), ("ours", "2", "2"))
    ]
    printed = capsys.readouterr().out
    assert "batch_hard_mining random-256x128 float32-high, two products: 0.03355 GFLOP" in printed
    assert "floor of forward: 0.1007 GFLOP in 3xFP16, 1.074 MB, 0.0002498 ms; ours / floor 8010" in printed
