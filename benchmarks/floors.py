"""What ours has to do on CUDA at least, how long that takes a known GPU, and what was predicted for its first kernels.

A floor is the larger of operations / rate and bytes / bandwidth. A prediction, made before any of this was measured, is
the same arithmetic for the kernels as they are written; `python -m benchmarks --floors` prints both.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Rows and dims of the cases for CUDA.
CUDA_SIZES = tuple((rows, dims) for dims in (128, 256) for rows in (256, 1024, 4096, 16384, 65536))

ROW_RESULT_BYTES = 100  # about what lists, indices, distances or slopes of a row take, written and read
LAUNCH_SECONDS = 4e-6  # 3 to 5 us from a launch to the end of a kernel that does nothing


@dataclass(frozen=True)
class Arithmetic:
    """How the tensor cores multiply rows of one dtype."""

    name: str
    rate: str  # key of Card.flops
    pieces: int  # products of tensor cores for one
    input_bytes: int  # of an element
    stored_bytes: int  # of an element in the prepared rows, all copies
    streamed_bytes: int  # of an element as the products read it


#: By dtype of the benchmark. Torch's precision does not matter to ours: it never shows in the result.
ARITHMETICS = {
    "float32": Arithmetic("3xFP16", "half", 3, 4, 8, 4),
    "float32-high": Arithmetic("3xFP16", "half", 3, 4, 8, 4),
    "bfloat16": Arithmetic("bf16", "half", 1, 2, 2, 2),
    "float16": Arithmetic("fp16", "half", 1, 2, 2, 2),
}


@dataclass(frozen=True)
class Card:
    """Rates of a GPU that good kernels reach, some 80 to 90 % of the data sheet's."""

    multiprocessors: int
    clock: float  # Hz
    flops: dict[str, float]  # operations per second of the tensor cores
    memory: float  # bytes per second
    l2: float  # bytes per second

    @property
    def lanes(self) -> float:
        """Return instructions of one lane per second; shared memory moves as many bytes."""
        return self.multiprocessors * 128 * self.clock


CARDS = {"NVIDIA H200": Card(132, 1.7e9, {"tf32": 400e12, "half": 790e12}, memory=4.3e12, l2=5.5e12)}


@dataclass(frozen=True)
class Work:
    """Operations of the tensor cores and bytes from or to memory, both the least that the method needs."""

    arithmetic: Arithmetic
    flops: int
    bytes: int

    def seconds(self, card: Card) -> float:
        """Return the floor on a GPU, launches not counted."""
        return max(self.flops / card.flops[self.arithmetic.rate], self.bytes / card.memory)


WorkOf = Callable[[int, int, str], Work]  # of rows, dims and dtype


def mining_work(rows: int, dims: int, dtype: str) -> Work:
    """Return the work of the forward pass: two products; inputs read, prepared rows written and read, results."""
    a = ARITHMETICS[dtype]
    moved = 2 * rows * dims * (a.input_bytes + a.stored_bytes + a.streamed_bytes) + rows * ROW_RESULT_BYTES
    return Work(a, a.pieces * 4 * rows * rows * dims, moved)


def gradient_work(rows: int, dims: int, dtype: str) -> Work:
    """Return the work of the backward pass to the student: both inputs read, one gradient written, pairs read."""
    a = ARITHMETICS[dtype]
    return Work(a, 0, 3 * rows * dims * a.input_bytes + rows * ROW_RESULT_BYTES)


# Predictions

MMA_SHARE = 0.6  # of the tensor cores' rate that mma.sync is said to reach on Hopper
EPILOGUE_OPERATIONS = 10  # of a lane for every pair of rows
COLUMNS, WARP_ROWS = 64, 16  # of a tile and of a warp in it; columns count twice, teacher and student
SCAN_OPERATIONS = 40  # of a lane for every pair that a block of the backward kernel looks at


def divide_up(value: int, by: int) -> int:
    """Return the quotient rounded up."""
    return -(-value // by)


def predict_forward(rows: int, dims: int, dtype: str, card: Card) -> tuple[float, str]:
    """Return the seconds of both forward kernels, launches included, and what limits the second one.

    A warp multiplies or compares, not both, so these times add up; copies from L2 and loads from shared memory go on
    beside them. Latencies are left out: with few rows the real time is longer.
    """
    a, work = ARITHMETICS[dtype], mining_work(rows, dims, dtype)
    large = divide_up(rows, 128) >= max(3, card.multiprocessors // 5)
    block_rows = 128 if large else 64
    row_blocks, tiles = divide_up(rows, block_rows), divide_up(rows, COLUMNS)
    blocks_per_multiprocessor = 1 if large else 2 if a.input_bytes == 4 else 3
    splits = max(1, min(card.multiprocessors * blocks_per_multiprocessor // row_blocks, 16, tiles))
    per_multiprocessor = row_blocks * splits / card.multiprocessors  # the busiest has this rounded up

    loaded = (WARP_ROWS + 2 * COLUMNS) * dims  # elements that a warp loads for a tile
    from_l2 = row_blocks * tiles * (block_rows + 2 * COLUMNS) * dims * a.streamed_bytes
    through_shared = from_l2 + divide_up(rows, WARP_ROWS) * tiles * loaded * a.streamed_bytes
    seconds = {
        "warps": work.flops / (MMA_SHARE * card.flops[a.rate]) + rows * rows * EPILOGUE_OPERATIONS / card.lanes,
        "L2": from_l2 / card.l2,
        "shared": through_shared / card.lanes,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    mining = seconds[limit] * math.ceil(per_multiprocessor) / per_multiprocessor
    preparing = 2 * rows * dims * (a.input_bytes + a.stored_bytes) / card.memory
    return 2 * LAUNCH_SECONDS + preparing + mining, limit


def predict_backward(rows: int, dims: int, dtype: str, card: Card) -> float:
    """Return the seconds of the backward kernel: every block looks through the 2 N pairs; hubs would take longer."""
    looked_at = 2 * rows * divide_up(rows, 8 if rows <= 8192 else 32)
    return LAUNCH_SECONDS + max(
        gradient_work(rows, dims, dtype).bytes / card.memory,
        looked_at * 8 / card.l2,
        looked_at * SCAN_OPERATIONS / card.lanes,
    )


def floor_table(card: Card) -> str:
    """Return floors and predictions of the loss for the cases of CUDA, in Markdown."""
    lines = [
        "| N x D | GFLOP | MB | floor, µs | predicted forward, µs | limited by | predicted backward, µs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rows, dims in CUDA_SIZES:
        columns: list[list[str]] = [[] for _ in range(6)]
        for dtype in ("float32", "bfloat16"):
            work = mining_work(rows, dims, dtype)
            forward, limit = predict_forward(rows, dims, dtype, card)
            cells = (
                digits(work.flops / 1e9, 3),
                digits(work.bytes / 1e6, 3),
                digits(work.seconds(card) * 1e6, 2),
                digits(forward * 1e6, 2),
                limit,
                digits(predict_backward(rows, dims, dtype, card) * 1e6, 2),
            )
            for column, cell in zip(columns, cells, strict=True):
                column.append(cell)
        lines.append(f"| {rows} x {dims} | " + " | ".join(", ".join(cells) for cells in columns) + " |")
    return "\n".join(lines)


def floor_lines(
    machine: str, works: Mapping[str, WorkOf], rows: int, dims: int, dtype: str, ours_ms: Mapping[str, float]
) -> list[str]:
    """Return a line per mode of ours: operations, bytes, the floor on a GPU by name, and the measured time over it."""
    if dtype not in ARITHMETICS:
        return [f"no floor: ours multiplies {dtype} without tensor cores"]
    if machine not in CARDS:
        return [f"no floor: the rates of {machine} are not known"]
    lines = []
    for mode, work_of in works.items():
        work = work_of(rows, dims, dtype)
        floor_ms = work.seconds(CARDS[machine]) * 1e3
        share = f"; ours / floor {digits(ours_ms[mode] / floor_ms, 3)}" if mode in ours_ms else ""
        flops = f"{digits(work.flops / 1e9, 4)} GFLOP in {work.arithmetic.name}, " if work.flops else ""
        lines.append(f"floor of {mode}: {flops}{digits(work.bytes / 1e6, 4)} MB, {digits(floor_ms, 4)} ms{share}")
    return lines


def digits(value: float, count: int) -> str:
    """Return a number with so many significant digits and no exponent."""
    return f"{float(f'{value:.{count}g}'):g}"
