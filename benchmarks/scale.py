"""What many GPUs would take: seconds and bytes of a step, from stated rates of links and modeled times of kernels.

    python -m benchmarks.scale            # prints docs/scale.md
    python -m benchmarks.scale --write    # writes it

Nothing here has been measured on more than one GPU. The kernels' times are those of benchmarks.floors.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.floors import CARDS, digits, divide_up, markdown_table
from benchmarks.floors import contrastive as contrastive_floors
from benchmarks.floors import kmeans as kmeans_floors
from benchmarks.floors import mining as mining_floors
from benchmarks.floors import neighbors as neighbors_floors
from benchmarks.floors.sinkhorn import SUM_OPERATIONS
from deepclust_ext.distributed.exchange import SMALL

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
NAME = "NVIDIA H200"
CARD = CARDS[NAME]
NODE = 8  # GPUs
GPUS = (8, 64, 256, 1024)


@dataclass(frozen=True)
class Link:
    """What one GPU sends in one direction, and how long a message is on its way at least."""

    bytes_per_second: float
    latency: float


# Assumed: NVLink 4 has 450 GB/s in each direction, a 400 Gb/s adapter for each GPU 50 GB/s; 80 % of either is reached.
INSIDE, BETWEEN = Link(360e9, 5e-6), Link(40e9, 15e-6)

# A step: images of a GPU, features of a head in float32, clusters of a head.
IMAGES, DIMS, CLUSTERS, ELEMENT, WIDE = 256, 128, 1000, 4, 8
ITERATIONS, NEIGHBORS, BANK_ROWS = 3, 50, 1_000_000

# The plan for many images. Assumed: what a GPU trains of a ResNet-50 with two views, and what a node reads from disk.
ALL_IMAGES, BANK_DIMS, BANK_ELEMENT, ALL_CLUSTERS, PASSES = 10**9, 256, 2, 1000, 20
IMAGES_PER_SECOND, DISK = 1000, 5e9


def ring(part: float, gpus: int) -> float:
    """Return the seconds in which every GPU gets the parts, of so many bytes, of all others from its neighbor."""
    link = INSIDE if gpus <= NODE else BETWEEN  # the slowest one decides
    return (gpus - 1) * (link.latency + part / link.bytes_per_second)


def by_nodes(part: float, gpus: int) -> float:
    """Return the same where nodes exchange first, each GPU with those in its place, and GPUs within a node then."""
    nodes = divide_up(gpus, NODE)
    across = (nodes - 1) * (BETWEEN.latency + part / BETWEEN.bytes_per_second)
    return across + (min(gpus, NODE) - 1) * (INSIDE.latency + nodes * part / INSIDE.bytes_per_second)


def all_to_all(part: float, gpus: int) -> float:
    """Return the seconds in which every GPU sends each other one a part of its own; messages are under way at once."""
    inside = min(gpus, NODE) - 1
    seconds = INSIDE.latency + inside * part / INSIDE.bytes_per_second
    outside = gpus - 1 - inside
    return seconds + (BETWEEN.latency + outside * part / BETWEEN.bytes_per_second if outside else 0.0)


def summed(total: float, gpus: int) -> float:
    """Return the seconds of a sum: small ones each GPU adds up for itself; of others a part, which all others get."""
    if total <= SMALL:
        return by_nodes(total, gpus)
    return all_to_all(total / gpus, gpus) + by_nodes(total / gpus, gpus)


def in_turn(part: float, gpus: int, compute: float) -> float:
    """Return the seconds of parts that go round while the one before is worked on; `compute` is of all parts."""
    link = INSIDE if gpus <= NODE else BETWEEN
    transfer = link.latency + part / link.bytes_per_second
    return compute / gpus + (gpus - 1) * max(transfer, compute / gpus)


def contrastive_seconds(gpus: int) -> tuple[float, float]:
    """Return the forward and backward seconds of the kernels on one GPU: its anchors and the rows of all.

    Backward, pairs within the GPU are computed once for both rows, those with others for anchors and again for columns.
    """
    count = 65536
    pairs = 4 * IMAGES * IMAGES * gpus
    forward = contrastive_floors.predict_forward(count // 2, DIMS, "float32", CARD)[0] / count**2
    backward = contrastive_floors.predict_backward(count // 2, DIMS, "float32", CARD)[0] / count**2
    return pairs * forward, (2 * pairs - pairs / gpus) * backward


def mining_seconds(gpus: int) -> float:
    """Return the seconds of mining on one GPU: its anchors among the rows of all, and the gradient of all pairs."""
    count = 65536
    forward = mining_floors.predict_forward(count, DIMS, "float32", CARD)[0] / count**2
    return IMAGES * IMAGES * gpus * forward + mining_floors.predict_backward(IMAGES * gpus, DIMS, "float32", CARD)


def mining_seconds_in_blocks(gpus: int) -> float:
    """Return the seconds of the HSD loss where anchors go round, with the exchanges.

    A block is all rows of a GPU, which are columns beside the host's. At worst no two anchors share a row of a pair.
    """
    count = 65536
    pair = mining_floors.predict_forward(count, DIMS, "float32", CARD)[0] / count**2
    view = IMAGES * DIMS * ELEMENT
    answers = IMAGES * 2 * (ELEMENT + WIDE)
    round_trip = in_turn(2 * view, gpus, 2 * IMAGES * IMAGES * gpus * pair) + ring(answers, gpus)
    decision = 3 * IMAGES * IMAGES * pair + mining_floors.predict_backward(3 * IMAGES, DIMS, "float32", CARD)
    return round_trip + all_to_all(4 * view / gpus, gpus) + decision + all_to_all(2 * view / gpus, gpus)


def sinkhorn_seconds() -> float:
    """Return the seconds of the sums of one GPU: over samples and over clusters, read from memory each time."""
    scores = IMAGES * CLUSTERS
    return ITERATIONS * 2 * (scores * ELEMENT / CARD.memory + scores * SUM_OPERATIONS / CARD.lanes)


def microseconds(seconds: float) -> str:
    """Return digits of microseconds."""
    return digits(seconds * 1e6, 3)


def loss_table() -> str:
    """Return what the gathered losses take."""
    lines = []
    for gpus in GPUS:
        part = 2 * IMAGES * DIMS * ELEMENT
        forward, backward = contrastive_seconds(gpus)
        lines.append(
            [
                f"{gpus:,}",
                f"{2 * IMAGES * gpus:,}",
                digits(part * gpus / 1e6, 3),
                microseconds(ring(part, gpus)),
                microseconds(by_nodes(part, gpus)),
                microseconds(forward + backward),
                microseconds(all_to_all(part, gpus)),
                microseconds(by_nodes(part, gpus) + all_to_all(part, gpus) + forward + backward),
                microseconds(in_turn(part, gpus, forward) + in_turn(2 * part, gpus, backward)),
                digits(4 * IMAGES * IMAGES * gpus * ELEMENT / 1e6, 3),
            ]
        )
    titles = ["GPUs", "rows", "gathered, MB", "ring, µs", "by nodes, µs", "kernels, µs", "back, µs", "step, µs"]
    return markdown_table([*titles, "step, blocks going round, µs", "a dense matrix, MB"], lines)


def other_table() -> str:
    """Return what the other exchanges take."""
    lines = []
    for gpus in GPUS:
        one_view = IMAGES * DIMS * ELEMENT  # the teacher gets no gradient
        mined = mining_seconds(gpus) + by_nodes(2 * one_view, gpus) + all_to_all(one_view, gpus)
        columns = summed((2 * CLUSTERS) ** 2 * ELEMENT, gpus)
        prototypes = summed(CLUSTERS * (2 * DIMS + 1) * ELEMENT, gpus)
        sinkhorn = sinkhorn_seconds() + ITERATIONS * summed(CLUSTERS * ELEMENT, gpus)
        rows = divide_up(BANK_ROWS, gpus)
        iteration = (
            kmeans_floors.predict_assign(rows, CLUSTERS, DIMS, "float32", CARD)[0]
            + kmeans_floors.predict_update(rows, CLUSTERS, DIMS, "float32", CARD)
            + summed(CLUSTERS * (DIMS + 1) * WIDE, gpus)
        )
        search = neighbors_floors.predict_search(IMAGES * gpus, DIMS, "float32", rows, NEIGHBORS, CARD)[0]
        bank = by_nodes(one_view, gpus) + search + all_to_all(IMAGES * NEIGHBORS * 2 * WIDE, gpus)
        values = (mined, mining_seconds_in_blocks(gpus), columns, prototypes, sinkhorn, iteration, bank)
        lines.append([f"{gpus:,}", *map(microseconds, values)])
    titles = [
        "GPUs",
        "HSD loss",
        "HSD loss, blocks going round",
        "columns of a cluster loss",
        "prototypes",
        "Sinkhorn",
        "k-means iteration",
        "neighbors",
    ]
    return markdown_table(titles, lines)


def plan_table() -> str:
    """Return what a billion images take."""
    lines = []
    for gpus in GPUS[1:]:
        rows, nodes = divide_up(ALL_IMAGES, gpus), divide_up(gpus, NODE)
        stored = ALL_IMAGES * BANK_DIMS * BANK_ELEMENT
        reading = stored / nodes / DISK
        assigned = kmeans_floors.predict_assign(rows, ALL_CLUSTERS, BANK_DIMS, "bfloat16", CARD)[0]
        exchange = summed(ALL_CLUSTERS * (BANK_DIMS + 1) * WIDE, gpus)
        lines.append(
            [
                f"{gpus:,}",
                digits(ALL_IMAGES / gpus / IMAGES_PER_SECOND / 3600, 3),
                digits(stored / gpus / 1e9, 3),
                digits(reading, 3),
                digits(assigned, 3),
                digits(exchange * 1e3, 3),
                digits(PASSES * max(reading, assigned) / 60, 3),
            ]
        )
    titles = ["GPUs", "hours of an epoch", "bank, GB on a GPU", "a pass from disk, s", "its k-means, s"]
    return markdown_table([*titles, "its exchange, ms", f"{PASSES} passes, minutes"], lines)


def page() -> str:
    """Return docs/scale.md."""
    inside, between = (f"{digits(link.bytes_per_second / 1e9, 3)} GB/s" for link in (INSIDE, BETWEEN))
    near, far = (f"{microseconds(link.latency)} µs" for link in (INSIDE, BETWEEN))
    whole, disk = digits(ALL_IMAGES * BANK_DIMS * BANK_ELEMENT / 1e9, 3), digits(DISK / 1e9, 2)
    return f"""# Many GPUs

Every number on this page is printed by `python -m benchmarks.scale`.

## What is proven, and what is modeled

The results are proven: `tests/distributed` runs 1 to 4 ranks on CPUs with gloo. Losses, statistics, gradients of rows
and parameters, assignments, labels and neighbors are those of one process with all rows, for equal, unequal and empty
shards.

All times below are modeled; nobody has measured them. Kernels take the times that [models](performance/models.md)
predicts for an {NAME}. Links are assumed to reach 80 % of their rate: {inside} and {near} a message among the {NODE}
GPUs of a node, {between} for each GPU and {far} between nodes. NCCL has not been run with these functions.

## The contrastive loss

Each GPU has {IMAGES} images in two views, with {DIMS} features in float32. The table is for forward and backward. The
rows are gathered once, and their gradients go back to their owners. *Ring* and *by nodes* are two ways to gather:
around all GPUs, or first between nodes and then within them, as NCCL does it. *Back* is the all-to-all of the
gradients. *Step* is the sum of *by nodes*, *kernels* and *back*. A GPU computes each pair of its own rows once. A
pair of rows on two GPUs is computed by both.

Rows are gathered in this way up to 256 MB in all. Beyond that, and on CPUs, blocks of rows travel from rank to rank
while the block before is multiplied; one column has the time of that.

{loss_table()}

The last column is the matrix of scores, for one GPU, that is never made.

## All others, in microseconds

HSD loss: the {IMAGES} anchors of a GPU among all rows. These are gathered up to 256 MB in all; beyond that anchors
travel, for which a column gives the worst case. Cluster loss: products of 2 x {CLUSTERS:,} columns.
Prototypes: sums of {CLUSTERS:,} clusters. Sinkhorn: {ITERATIONS} iterations, each with {CLUSTERS:,} numbers. k-means:
one iteration on {BANK_ROWS:,} rows in all with {CLUSTERS:,} clusters. Neighbors: {NEIGHBORS} for every image of the
step, from a bank of {BANK_ROWS:,} rows in all.

{other_table()}

## A billion images

This is a plan; nobody has run it. Each rank trains on its part of the images. Features of {BANK_DIMS} numbers in
bfloat16 are on the disks of the nodes, {whole} GB in all, and also in the GPUs as a bank that is spread over them.
Pseudo-labels come from k-means in passes over the disks; after each pass the ranks add up their sums. It is assumed
that a GPU trains {IMAGES_PER_SECOND:,} images a second, and that the disk of a node gives {disk} GB/s.

{plan_table()}

Reading and k-means overlap, so the larger of the two times counts. First centers come from `init="k-means||"` with
five passes on a sample, because k-means++ would exchange four messages for every center.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page or write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/scale.md instead of printing it")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page())
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
