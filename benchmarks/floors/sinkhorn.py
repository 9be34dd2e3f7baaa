"""Floors and predictions of sinkhorn_knopp on CUDA; see floors/__init__.py.

There are no products here: what counts is how often the scores are read, how many exponentials are computed, and how
many kernels are launched one after the other.
"""

from dataclasses import dataclass

from benchmarks.floors import LAUNCH_SECONDS, TABLE_DTYPES, Card, Work, digits, divide_up, markdown_table

OPS = "sinkhorn_knopp"

ELEMENT_BYTES = {"float32": 4, "float32-high": 4, "bfloat16": 2, "float16": 2}
L2_BYTES = 50e6  # scores that are larger come from memory in every iteration

# How the kernels cut a problem; see plan_sinkhorn_knopp in csrc/sinkhorn/cuda/sinkhorn_knopp.cu.
ONE_BLOCK_ELEMENTS = 1 << 14
WARPS, SLICE_ROWS, TILE_COLUMNS = 16, 32, 32
AT_ONCE = 4  # elements that a lane has under way together

# Instructions of a lane for an element. An exponential has eight.
SUM_OPERATIONS = 32  # of a sum of exponentials: 8 to find the largest exponent, 24 to add one relative to that
CHECK_OPERATIONS = 4  # that the score is finite
WRITE_OPERATIONS = 24  # of an assignment
SHARE_OPERATIONS = 15  # of one of the softmaxes of the gradient

# Clock cycles that one warp waits for itself.
STEP_CYCLES = 250  # AT_ONCE elements compared and added to a sum
SHARE_CYCLES = 100  # an element of the gradient's softmaxes
ROW_CYCLES = 400  # a row's sum over the lanes and its logarithm
MERGE_CYCLES = 1500  # a tile's sums over the slices, log v, and two barriers

#: Problems, samples, clusters and iterations in the table.
SIZES = ((1, 256, 10, 3), (64, 256, 16, 3), (1, 4096, 1000, 3), (1, 4096, 1000, 50), (1, 65536, 1000, 3))


@dataclass(frozen=True)
class Plan:
    """How the work of some problems is cut into launches and thread blocks."""

    problems: int
    samples: int
    clusters: int
    num_iters: int

    @property
    def elements(self) -> int:
        """Return how many scores there are."""
        return self.problems * self.samples * self.clusters

    @property
    def tiles(self) -> int:
        """Return how many tiles of columns there are."""
        return divide_up(self.clusters, TILE_COLUMNS)

    @property
    def is_small(self) -> bool:
        """Return whether a thread block solves a problem by itself."""
        return self.samples * self.clusters <= ONE_BLOCK_ELEMENTS

    @property
    def launches(self) -> int:
        """Return how many kernels are launched, forward or backward."""
        return 1 if self.is_small else 2 + 2 * self.num_iters

    @property
    def slices_of_chunk(self) -> int:
        """Return how many slices of rows a thread block has."""
        slices = divide_up(self.samples, SLICE_ROWS)
        return slices if self.is_small else min(max(1, WARPS // self.tiles), slices)

    @property
    def row_lanes(self) -> int:
        """Return how many lanes share a row."""
        return min(32, 1 << (divide_up(self.clusters, AT_ONCE) - 1).bit_length())

    @property
    def rows_of_lane(self) -> int:
        """Return how many rows of a chunk every lane takes part in."""
        return divide_up(self.slices_of_chunk * SLICE_ROWS, WARPS * 32 // self.row_lanes)

    @property
    def items_of_warp(self) -> int:
        """Return how many slices of a tile every warp sums up."""
        return divide_up(self.slices_of_chunk * self.tiles, WARPS)

    @property
    def merge_cycles(self) -> int:
        """Return how long a thread block merges the sums of all its tiles."""
        return MERGE_CYCLES * (self.tiles if self.is_small else 1)

    @property
    def blocks(self) -> int:
        """Return how many thread blocks a launch has."""
        return self.problems * divide_up(self.samples, self.slices_of_chunk * SLICE_ROWS)

    @property
    def exponentials(self) -> int:
        """Return how many exponentials the forward pass computes."""
        return self.elements * (2 * self.num_iters + 1)


def assignment_work(samples: int, clusters: int, dtype: str, *, problems: int, num_iters: int) -> Work:
    """Return the work of the forward pass: scores read, once if they stay on the chip, and assignments written."""
    scores = problems * samples * clusters * ELEMENT_BYTES[dtype]
    return Work({}, scores * (2 if scores <= L2_BYTES else num_iters + 2))


def gradient_work(samples: int, clusters: int, dtype: str, *, problems: int, num_iters: int) -> Work:
    """Return the work of the backward pass: scores and incoming gradient read, a gradient written."""
    scores = problems * samples * clusters * ELEMENT_BYTES[dtype]
    return Work({}, scores * (3 if scores <= L2_BYTES else num_iters + 4))


def predict(plan: Plan, moved: float, work: Work, operations: float, cycles: float, card: Card) -> tuple[float, str]:
    """Return the seconds of all launches, and what limits them apart from being launched.

    Where blocks do not divide evenly among multiprocessors, the busiest decides. `cycles` are those of one block after
    another, as far as a warp waits for itself; two blocks share a multiprocessor.
    """
    rounds = divide_up(plan.blocks, card.multiprocessors)
    seconds = {
        "instructions": operations / card.lanes * rounds * card.multiprocessors / plan.blocks,
        "latency": cycles * divide_up(plan.blocks, 2 * card.multiprocessors) / card.clock,
        "L2": moved / card.l2,
        "memory": work.bytes / card.memory,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    return plan.launches * LAUNCH_SECONDS + seconds[limit], limit


def predict_forward(plan: Plan, dtype: str, card: Card) -> tuple[float, str]:
    """Return the seconds of the forward pass, launches included, and what limits it apart from those."""
    work = assignment_work(plan.samples, plan.clusters, dtype, problems=plan.problems, num_iters=plan.num_iters)
    steps_of_row = divide_up(plan.clusters, plan.row_lanes * AT_ONCE)
    in_tiles = plan.problems * plan.samples * plan.tiles * TILE_COLUMNS  # absent columns take time too
    operations = plan.num_iters * 2 * in_tiles * SUM_OPERATIONS
    operations += plan.elements * (CHECK_OPERATIONS + WRITE_OPERATIONS)
    row_cycles = plan.rows_of_lane * (steps_of_row * STEP_CYCLES + ROW_CYCLES)
    column_cycles = plan.items_of_warp * SLICE_ROWS // AT_ONCE * STEP_CYCLES
    cycles = plan.num_iters * (row_cycles + column_cycles + plan.merge_cycles)
    sums = plan.elements / SLICE_ROWS * 8  # written and read
    moved = plan.elements * ELEMENT_BYTES[dtype] * (plan.num_iters + 2) + plan.num_iters * 2 * sums
    return predict(plan, moved, work, operations, cycles, card)


def predict_backward(plan: Plan, dtype: str, card: Card) -> tuple[float, str]:
    """Return the seconds of the backward pass, launches included, and what limits it apart from those."""
    work = gradient_work(plan.samples, plan.clusters, dtype, problems=plan.problems, num_iters=plan.num_iters)
    softmaxes = 4 * plan.num_iters  # of every element: for each iteration one by rows, one by columns, both once more
    row_cycles = plan.rows_of_lane * (3 * divide_up(plan.clusters, plan.row_lanes) * SHARE_CYCLES + ROW_CYCLES)
    cycles = plan.num_iters * (row_cycles + plan.items_of_warp * SLICE_ROWS * SHARE_CYCLES + plan.merge_cycles)
    sums = plan.elements / SLICE_ROWS * 4  # written and read
    moved = plan.elements * ELEMENT_BYTES[dtype] * (plan.num_iters + 4) + plan.num_iters * 2 * sums
    return predict(plan, moved, work, plan.elements * softmaxes * SHARE_OPERATIONS, cycles, card)


def predict_loop(plan: Plan, card: Card) -> float:
    """Return the seconds of SwAV's loop in float32: 6 kernels an iteration, which read or write the matrix 10 times."""
    scores = plan.elements * ELEMENT_BYTES["float32"]
    rate = card.l2 if scores <= L2_BYTES else card.memory
    return (5 + 6 * plan.num_iters) * LAUNCH_SECONDS + (9 + 10 * plan.num_iters) * scores / rate


def floor_table(card: Card) -> str:
    """Return floors and predictions, in Markdown."""
    titles = ["problems x N x K, T", "dtype", "exponentials, millions", "launches", "SwAV's loop in float32, µs"]
    for mode in ("forward", "backward"):
        titles += [f"MB {mode}", "floor, µs", "predicted, µs", "limited by"]
    lines = []
    for problems, samples, clusters, num_iters in SIZES:
        plan = Plan(problems, samples, clusters, num_iters)
        for dtype in TABLE_DTYPES:
            cells = [
                f"{problems} x {samples} x {clusters}, {num_iters}",
                dtype,
                digits(plan.exponentials / 1e6, 3),
                str(plan.launches),
                digits(predict_loop(plan, card) * 1e6, 2),
            ]
            for work_of, predict_mode in ((assignment_work, predict_forward), (gradient_work, predict_backward)):
                work = work_of(samples, clusters, dtype, problems=problems, num_iters=num_iters)
                seconds, limit = predict_mode(plan, dtype, card)
                cells += [
                    digits(work.bytes / 1e6, 3),
                    digits(work.seconds(card) * 1e6, 2),
                    digits(seconds * 1e6, 2),
                    limit,
                ]
            lines.append(cells)
    return markdown_table(titles, lines)
