"""What ours has to do on CUDA at least, and how long that takes a known GPU.

A floor is the larger of operations / rate and bytes / bandwidth. A prediction, made before any of this was measured, is
the same arithmetic for the kernels as they are written; `python -m benchmarks --floors` prints both. What the kernels
of an op do stands in the module of its family.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

#: Rows and dims of the cases for CUDA; of the contrastive loss, of both views together.
CUDA_SIZES = tuple((rows, dims) for dims in (128, 256) for rows in (256, 1024, 4096, 16384, 65536))

TABLE_DTYPES = ("float32", "bfloat16")  # of the tables of floors and predictions

LAUNCH_SECONDS = 4e-6  # 3 to 5 us from a launch to the end of a kernel that does nothing
WARP_ROWS, TILE_COLUMNS = 16, 64  # of a warp in a tile, and of the tile


@dataclass(frozen=True)
class Arithmetic:
    """How a GPU multiplies: at which rate, and in how many products of its own for one."""

    name: str
    rate: str  # key of Card.flops, or "lanes": without tensor cores
    pieces: int


TF32, TF32X3 = Arithmetic("tf32", "tf32", 1), Arithmetic("3xTF32", "tf32", 3)
FP16, FP16X3, BF16 = Arithmetic("fp16", "half", 1), Arithmetic("3xFP16", "half", 3), Arithmetic("bf16", "half", 1)
FMA = Arithmetic("float32", "lanes", 1)


@dataclass(frozen=True)
class Card:
    """Rates of a GPU that good kernels reach, some 80 to 90 % of the data sheet's."""

    multiprocessors: int
    clock: float  # Hz
    flops: dict[str, float]  # operations per second of the tensor cores
    memory: float  # bytes per second
    l2: float  # bytes per second
    mma_share: float  # of the tensor cores' rate that mma.sync reaches
    float_lanes: int  # of a multiprocessor, in float32

    @property
    def lanes(self) -> float:
        """Return instructions of one lane per second."""
        return self.multiprocessors * self.float_lanes * self.clock

    def product_rate(self, arithmetic: Arithmetic) -> float:
        """Return operations per second of products."""
        return 2 * self.lanes if arithmetic.rate == "lanes" else self.flops[arithmetic.rate]

    @property
    def shared(self) -> float:
        """Return bytes per second of shared memory."""
        return self.multiprocessors * 128 * self.clock


#: By the names that their drivers give them. mma.sync is said to reach 60 % on Hopper, and is the tensor cores' own
#: instruction before it.
CARDS = {
    "NVIDIA H200": Card(132, 1.7e9, {"tf32": 400e12, "half": 790e12}, 4.3e12, 5.5e12, mma_share=0.6, float_lanes=128),
    "NVIDIA A100-SXM4-80GB": Card(
        108, 1.41e9, {"tf32": 130e12, "half": 260e12}, 1.8e12, 4e12, mma_share=0.9, float_lanes=64
    ),
    "NVIDIA GeForce RTX 3090": Card(
        82, 1.7e9, {"tf32": 30e12, "half": 60e12}, 0.84e12, 2e12, mma_share=0.9, float_lanes=128
    ),
}


@dataclass(frozen=True)
class Work:
    """Operations of products and bytes from or to memory, both the least that the method needs."""

    flops: Mapping[Arithmetic, int]
    bytes: int

    def product_seconds(self, card: Card) -> float:
        """Return how long the products take a GPU."""
        return sum(flops / card.product_rate(arithmetic) for arithmetic, flops in self.flops.items())

    def seconds(self, card: Card) -> float:
        """Return the floor on a GPU, launches not counted."""
        return max(self.product_seconds(card), self.bytes / card.memory)


WorkOf = Callable[[int, int, str], Work]  # of a case's rows and dims, and a dtype


def divide_up(value: int, by: int) -> int:
    """Return the quotient rounded up."""
    return -(-value // by)


def predict_tiles(
    work: Work, lane_operations: float, from_l2: float, from_shared: float, blocks: int, card: Card
) -> tuple[float, str]:
    """Return the seconds of a kernel that multiplies tiles, and what limits it.

    A warp multiplies or computes, not both, so these times add up; copies from L2 to shared memory and loads from there
    go on beside them. Where blocks do not divide evenly among multiprocessors, the busiest decides. Latencies are left
    out: with few rows the real time is longer.
    """
    seconds = {
        "warps": work.product_seconds(card) / card.mma_share + lane_operations / card.lanes,
        "L2": from_l2 / card.l2,
        "shared": (from_l2 + from_shared) / card.shared,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    per_multiprocessor = blocks / card.multiprocessors
    return seconds[limit] * math.ceil(per_multiprocessor) / per_multiprocessor, limit


def floor_lines(
    machine: str, works: Mapping[str, WorkOf], rows: int, dims: int, dtype: str, ours_ms: Mapping[str, float]
) -> list[str]:
    """Return a line per mode of ours: operations, bytes, the floor on a GPU by name, and the measured time over it."""
    if dtype == "float64":
        return [f"no floor: no rate of {dtype} is known"]
    if machine not in CARDS:
        return [f"no floor: the rates of {machine} are not known"]
    lines = []
    for mode, work_of in works.items():
        work = work_of(rows, dims, dtype)
        floor_ms = work.seconds(CARDS[machine]) * 1e3
        share = f"; ours / floor {digits(ours_ms[mode] / floor_ms, 3)}" if mode in ours_ms else ""
        flops = "".join(f"{digits(flops / 1e9, 4)} GFLOP in {a.name}, " for a, flops in work.flops.items())
        lines.append(f"floor of {mode}: {flops}{digits(work.bytes / 1e6, 4)} MB, {digits(floor_ms, 4)} ms{share}")
    return lines


def digits(value: float, count: int) -> str:
    """Return a number with so many significant digits and no exponent."""
    return f"{float(f'{value:.{count}g}'):g}"


def markdown_table(titles: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    titles = list(titles)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *lines))
