"""Heads on frozen features against k-means, and their cost against plain torch: `python -m benchmarks.features`.

Parts, each on its own or all after the other (`--part`), at a size of one's own (`--rows`, `--columns`, `--clusters`):

- quality: spherical k-means, the best of ten starts, and each method by its recipe for features, on a mixture of
  von Mises-Fisher distributions of unequal sizes (mixtures.py). At 100,000 x 384 with K = 1000 about 20 minutes.
- epoch: an epoch of NeighborHead's steps against the same method in plain torch, compiled and not
  (plain_neighborhead.py), from the same weights, batches and neighbors. A step of both has to give the same loss and
  the same gradients; what does not is WRONG and not timed. Seconds are those of an epoch after a step that warms up;
  the memory is the peak of a step beyond what was resident before, in a process of its own. About 5 minutes.
- neighbors: the search for neighbors of all rows, ours and by products and topk. Both have to find the same, but for
  ties within rounding. About 10 minutes.
- digits: for each seed, the rows of HaDis trained on the digits as features: k-means, best of ten, and NeighborHead.
  About 8 minutes.
- scale: 1,281,167 x 768 float16 from a file that the script writes (2 GB), K = 1000, at an eighth, a quarter, half and
  all of it, and with K = 250 and 500: k-means, the search for neighbors, an epoch of NeighborHead; seconds and the
  peak of the resident memory of each in a process of its own, mapped pages of the file included. About 40 minutes.

Lines go to benchmarks/results/features.csv as they come. Ours means the native library: without it nothing runs.
"""

import argparse
import csv
import gc
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import missing_kernels
from benchmarks.memory import SERVER_ENVIRONMENT, peak_resident_bytes, reset_peak
from benchmarks.mixtures import Mixture
from benchmarks.plain_neighborhead import PlainNeighborHead, plain_table
from benchmarks.report import ROOT, current_commit, format_cell, instruction_set, machine_name
from deepclust_ext import recipes
from deepclust_ext.cluster import KMeans
from deepclust_ext.data import Digits, Features, load_features
from deepclust_ext.data.neighbors import neighbor_table
from deepclust_ext.evaluation.metrics import clustering_accuracy, normalized_mutual_info
from deepclust_ext.methods import NeighborHead
from deepclust_ext.recipes.build import make_method, make_trainer
from deepclust_ext.recipes.features import EXACT_ROWS, features_recipe

RESULTS = ROOT / "benchmarks" / "results" / "features.csv"
ROWS, COLUMNS, CLUSTERS = 100_000, 384, 1000
#: At 384 columns the cosine of a row with its center is 0.6, of two rows of a cluster 0.36; of others 0 +- 0.05.
CONCENTRATION_PER_COLUMN = 0.94
SCALE_ROWS, SCALE_COLUMNS = 1_281_167, 768
STARTS = 10


@dataclass(frozen=True)
class Line:
    """A line of the CSV; seconds and memory are of what the provider does alone."""

    part: str
    provider: str
    rows: int
    columns: int
    clusters: int
    seed: int
    seconds: float | None = None
    peak_mb: float | None = None
    acc: float | None = None
    nmi: float | None = None
    note: str = ""


class Sheet:
    """The CSV, to which lines are added as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._facts = {
            "threads": str(torch.get_num_threads()),
            "machine": machine_name("cpu"),
            "instruction_set": instruction_set("cpu"),
            "torch": torch.__version__,
            "commit": current_commit(),
        }

    def add(self, line: Line) -> None:
        """Write a line, and print it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = {**asdict(line), **self._facts}
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, list(values), lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow({name: format_cell(value) for name, value in values.items()})
        shown = {field.name: getattr(line, field.name) for field in fields(line)[2:]}
        facts = ", ".join(f"{name} {format_cell(value)}" for name, value in shown.items() if value not in (None, ""))
        print(f"{line.part}, {line.provider}: {facts}", file=sys.stderr, flush=True)


def features_of(rows: int, columns: int, clusters: int, seed: int) -> Features:
    """Return a mixture as features with labels."""
    values, labels = Mixture(columns, clusters, CONCENTRATION_PER_COLUMN * columns, seed).draw(rows)
    return load_features(values.numpy(), labels=labels.numpy())


def scored(line: Line, labels: Tensor, clusters: Tensor) -> Line:
    """Return a line with the scores of clusters."""
    return replace(line, acc=clustering_accuracy(labels, clusters), nmi=normalized_mutual_info(labels, clusters))


def compare(part: str, features: Features, clusters: int, seed: int, methods: Sequence[str]) -> Iterator[Line]:
    """Yield k-means and each method by its recipe, from the same rows."""
    assert features.labels is not None
    facts = (len(features), features.channels, clusters, seed)
    start = time.perf_counter()
    kmeans = KMeans(clusters, metric="cosine", n_init=STARTS, random_state=seed)
    found = kmeans.fit_predict(features.stored().float())
    seconds = time.perf_counter() - start
    yield scored(Line(part, f"k-means, best of {STARTS}", *facts, seconds), features.labels, found)
    for method in methods:
        recipe, _ = features_recipe(features, clusters, method=method)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            trainer = make_trainer(recipe, features, folder, seed=seed)
            searched = time.perf_counter() - start
            trainer.fit()
            found = trainer.cluster()
            seconds = time.perf_counter() - start
        note = f"{recipe.epochs} epochs; neighbors {searched:.1f} s of the seconds"
        yield scored(Line(part, method, *facts, seconds, note=note), features.labels, found)


def quality(options: argparse.Namespace) -> Iterator[Line]:
    """Yield the scores of k-means and heads on a mixture."""
    for seed in options.seeds:
        features = features_of(options.rows, options.columns, options.clusters, seed)
        yield from compare("quality", features, options.clusters, seed, options.methods)


def digits(options: argparse.Namespace) -> Iterator[Line]:
    """Yield the scores of k-means and heads on the rows of HaDis trained on the digits."""
    scans = Digits()
    recipe = recipes.load("hadis-digits")
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(recipe, scans, folder, seed=seed)
            trainer.fit()
            rows = trainer.embed()
        features = load_features(rows.numpy(), labels=scans.labels.numpy())
        yield from compare("digits", features, recipe.data.num_clusters, seed, options.methods)


@dataclass
class Steps:
    """One way to make NeighborHead's steps: its weights, a loss of two batches of rows, and what follows a step."""

    weights: list[Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    after: Callable[[], None]

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.weights, lr=1e-3)


def steps_of(provider: str, method: NeighborHead) -> Steps:
    """Return a way to make steps, from the weights that the method has now."""
    if provider == "ours":
        return Steps(
            list(method.heads.parameters()), lambda a, b: method.training_step([a, b])[0], lambda: method.after_step()
        )
    plain = PlainNeighborHead(method)
    loss = torch.compile(plain) if provider == "plain torch, compiled" else plain
    return Steps(list(plain.heads.parameters()), loss, plain.after_step)


PROVIDERS = ("ours", "plain torch", "plain torch, compiled")


def method_of(features: Features, clusters: int, heads: int, seed: int) -> tuple[NeighborHead, int]:
    """Return a new method of so many heads, else by its recipe, and the size of a batch."""
    recipe = recipes.changed(features_recipe(features, clusters)[0], {"model.num_heads": heads})
    torch.manual_seed(seed)
    method = make_method(recipe)
    assert isinstance(method, NeighborHead)
    return method, recipe.batch_size


def first_step(provider: str, method: NeighborHead, rows: Tensor, near: Tensor, size: int) -> list[Tensor]:
    """Return loss and gradients of a step on the first rows."""
    steps = steps_of(provider, method)
    for weight in steps.weights:
        weight.grad = None
    loss = steps.loss(rows[:size], rows[near[:size, 0]])
    loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in steps.weights if weight.grad is not None)]


def agree(ours: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Return whether losses and gradients agree, to what float32 allows."""
    return len(ours) == len(other) and all(
        float((a - b).norm()) <= 1e-3 * float(b.norm()) + 1e-8 for a, b in zip(ours, other, strict=True)
    )


def run_epoch(steps: Steps, rows: Tensor, near: Tensor, size: int, count: int | None = None) -> float:
    """Return the seconds of an epoch, or of so many steps, after one that warms up."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(rows), generator=generator).split(size)
    order = order[:-1] if len(order[-1]) < size else order
    start = 0.0
    for place, own in enumerate([order[0], *order[:count]]):
        if place == 1:
            start = time.perf_counter()
        drawn = torch.randint(near.shape[1], (size, 1), generator=generator)
        loss = steps.loss(rows[own], rows[near[own].gather(1, drawn).squeeze(1)])
        steps.optimizer.zero_grad()
        loss.backward()
        steps.optimizer.step()
        steps.after()
    return time.perf_counter() - start


def peak_of(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the peak of resident memory in MB (10^6 bytes) beyond what was there, and what the function gives."""
    gc.collect()
    before = reset_peak()
    result = function()
    return (peak_resident_bytes() - before) / 1e6, result


def step_memory(provider: str, rows: int, columns: int, clusters: int, heads: int, seed: int) -> float:
    """Return the peak extra memory of a step in MB."""
    method, size = method_of(load_features(np.zeros((rows, columns), np.float16)), clusters, heads, seed)
    values = torch.randn(size, columns)
    near, steps = torch.arange(size).unsqueeze(1), steps_of(provider, method)
    run_epoch(steps, values, near, size)  # compiles, and makes what the optimizer keeps
    return peak_of(lambda: run_epoch(steps, values, near, size))[0]


def alone(function: Callable[..., Any], *arguments: Any, exact_memory: bool = True) -> Any:
    """Return what a function of this module gives in a process of its own, whose memory is its own too.

    With ``exact_memory`` freed blocks are back with the system at once, see memory.py, and all takes longer.
    """
    before = dict(os.environ)
    os.environ.update(SERVER_ENVIRONMENT if exact_memory else {})
    try:
        with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
            return pool.apply(function, arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)


def epoch(options: argparse.Namespace) -> Iterator[Line]:
    """Yield time and memory of an epoch of steps."""
    seed = options.seeds[0]
    features = features_of(options.rows, options.columns, options.clusters, seed)
    rows, shape = features.stored(), (options.rows, options.columns, options.clusters)
    near = torch.randint(len(rows), (len(rows), 10), generator=torch.Generator().manual_seed(0))
    method, size = method_of(features, options.clusters, options.heads, seed)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    expected = first_step("ours", method, rows, near, size)
    for provider in PROVIDERS:
        method.load_state_dict(state)
        if not agree(expected, first_step(provider, method, rows, near, size)):
            yield Line("epoch", provider, *shape, seed, note="WRONG")
            continue
        method.load_state_dict(state)
        seconds = run_epoch(steps_of(provider, method), rows, near, size)
        memory = alone(step_memory, provider, *shape, options.heads, seed)
        yield Line(
            "epoch", provider, *shape, seed, seconds, memory, note=f"batches of {size}, {method.num_heads} heads"
        )


def neighbors(options: argparse.Namespace) -> Iterator[Line]:
    """Yield time and memory of the search for neighbors."""
    seed, count = options.seeds[0], 50
    rows = features_of(options.rows, options.columns, options.clusters, seed).stored()
    shape, tables = (options.rows, options.columns, options.clusters), []
    searches: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: neighbor_table(rows, count),
        "products and topk": lambda: plain_table(rows, count),
    }
    for provider, search in searches.items():
        start = time.perf_counter()
        memory, table = peak_of(search)
        seconds = time.perf_counter() - start
        tables.append(table.long().sort(dim=1).values)
        note = f"{float((tables[0] == tables[-1]).double().mean()):.6f} as ours"
        yield Line("neighbors", provider, *shape, seed, seconds, memory, note=note)


def write_scale(path: Path, rows: int, columns: int, clusters: int) -> None:
    """Write a mixture as a .npy file of float16, block by block."""
    source = Mixture(columns, clusters, CONCENTRATION_PER_COLUMN * columns, 0)
    array = np.lib.format.open_memmap(path, "w+", np.float16, (rows, columns))
    for start in range(0, rows, 65_536):
        values, _ = source.draw(min(65_536, rows - start))
        array[start : start + len(values)] = values.numpy()
    array.flush()


def scale_kmeans(path: str, rows: int, clusters: int) -> list[tuple[str, float]]:
    """Return the seconds of three passes of k-means on the first rows of a file."""
    stored = load_features(path).stored()[:rows]
    start = time.perf_counter()
    KMeans(clusters, metric="cosine", init="k-means||", max_iter=3, tol=0, batch_size=65_536, random_state=0).fit(
        stored
    )
    return [("k-means, k-means|| and three passes", time.perf_counter() - start)]


def scale_head(path: str, rows: int, clusters: int) -> list[tuple[str, float]]:
    """Return the seconds of the search and of one epoch of NeighborHead on the first rows of a file."""
    features = load_features(path)[:rows]
    recipe, _ = features_recipe(features, clusters)
    recipe = replace(recipe, phases=(replace(recipe.phases[-1], epochs=1),))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        trainer = make_trainer(recipe, features, folder)
        searched = time.perf_counter()
        trainer.fit()
        search = "search of all pairs" if rows <= EXACT_ROWS else "search in cells"
        return [(search, searched - start), ("NeighborHead, an epoch", time.perf_counter() - searched)]


def with_peak(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Return what a function gives, and the peak of resident memory of this process in MB."""
    return function(*arguments), peak_resident_bytes() / 1e6


def scale(options: argparse.Namespace) -> Iterator[Line]:
    """Yield time and memory at the size of ImageNet, and below."""
    rows, columns = options.scale_rows, options.scale_columns
    sizes = [(rows // part, options.clusters) for part in (8, 4, 2, 1)]
    sizes += [(rows // 4, options.clusters // part) for part in (4, 2)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "features.npy"
        write_scale(path, rows, columns, options.clusters)
        for count, clusters in sizes:
            for function in (scale_kmeans, scale_head):
                found, peak = alone(with_peak, function, str(path), count, clusters, exact_memory=False)
                for provider, seconds in found:
                    note = f"{count / seconds:.0f} rows per second"
                    yield Line("scale", provider, count, columns, clusters, 0, seconds, peak, note=note)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Line]]] = {
    "quality": quality,
    "epoch": epoch,
    "neighbors": neighbors,
    "digits": digits,
    "scale": scale,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for and return the exit status: 1 if a result was wrong."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.features", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS), help="default: all")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--columns", type=int, default=COLUMNS)
    parser.add_argument("--clusters", type=int, default=CLUSTERS)
    parser.add_argument("--scale-rows", type=int, default=SCALE_ROWS)
    parser.add_argument("--scale-columns", type=int, default=SCALE_COLUMNS)
    parser.add_argument("--methods", nargs="+", default=["NeighborHead"], help="default: NeighborHead")
    parser.add_argument("--heads", type=int, default=16, help="of the part epoch (default: 16, as the authors have)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of quality and digits (default: 0)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="where the large file is written (default: the system's)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if fault := missing_kernels("cpu"):
        parser.error(fault)
    torch.set_num_threads(options.threads)
    sheet, wrong = Sheet(options.out), False
    for part in options.part:
        for line in PARTS[part](options):
            sheet.add(line)
            wrong |= line.note == "WRONG"
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
