"""What each part of HaDis is worth on the digits of the demo: `python -m benchmarks.hadis_ablation`.

Trains every variant with every seed, with the settings of `deepclust-ext demo`, and writes a row for each run into
benchmarks/results/hadis-ablation.csv as soon as it ends; runs that the file already holds for this number of epochs are
not made again. Then prints the table of docs/hadis.md. Each run has one thread, so that results do not depend on how
many go on at a time; a run takes a minute and a half or two of an idle core.
"""

import argparse
import csv
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.floors import markdown_table
from benchmarks.harness import missing_kernels
from benchmarks.report import ROOT, current_commit, format_cell, instruction_set, machine_name
from deepclust_ext import recipes
from deepclust_ext.data import Digits
from deepclust_ext.evaluation.scores import evaluate
from deepclust_ext.recipes.build import make_trainer

RECIPE = "hadis-digits"
RESULTS = ROOT / "benchmarks" / "results" / "hadis-ablation.csv"

#: What each variant changes of the demo's HaDis; every line but the last adds to the one before.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "DSA": {"hsd_weight": 0.0, "prototype_weight": 0.0},
    "DSA + HSD": {"prototype_weight": 0.0},
    "DSA + HSD + prototypes": {},
    "the same, DSA with neighbors instead of noise": {"bank_size": 1797},
}


@dataclass(frozen=True)
class Run:
    """A line of the CSV: scores after the last epoch."""

    variant: str
    seed: int
    epochs: int
    acc: float
    nmi: float
    ari: float
    knn_accuracy: float
    silhouette: float | None
    smallest: int
    largest: int
    training_seconds: float
    machine: str
    instruction_set: str
    torch: str
    commit: str


def train(variant: str, seed: int, epochs: int, commit: str) -> Run:
    """Train one variant and score it."""
    torch.set_num_threads(1)
    digits = Digits()
    with tempfile.TemporaryDirectory() as folder:
        changes = {f"model.{name}": value for name, value in VARIANTS[variant].items()}
        recipe = recipes.load(RECIPE, changes).with_epochs(epochs)
        trainer = make_trainer(recipe, digits, Path(folder), seed=seed)
        history = trainer.fit()
    result = evaluate(trainer.method, digits, seed=seed)
    scores = result.clusters
    return Run(
        variant,
        seed,
        epochs,
        scores.acc,
        scores.nmi,
        scores.ari,
        result.knn_accuracy,
        scores.silhouette,
        min(scores.sizes),
        max(scores.sizes),
        sum(record["seconds"] for record in history),
        machine_name("cpu"),
        instruction_set("cpu"),
        torch.__version__,
        commit,
    )


def read_runs(path: Path, epochs: int) -> list[dict[str, str]]:
    """Return the lines of the CSV for a number of epochs."""
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return [line for line in csv.DictReader(stream) if line["epochs"] == str(epochs)]


def append_run(path: Path, run: Run) -> None:
    """Add a line to the CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, [column.name for column in fields(Run)], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow({name: format_cell(value) for name, value in asdict(run).items()})


def table(lines: Iterable[Mapping[str, str]]) -> str:
    """Return the means over the seeds of each variant in Markdown."""
    rows = []
    lines = list(lines)
    for variant in VARIANTS:
        runs = [line for line in lines if line["variant"] == variant]
        if not runs:
            continue
        scores = [[float(run[name]) for run in runs] for name in ("acc", "nmi", "ari", "knn_accuracy")]
        each = ", ".join(f"{acc:.3f}" for acc in scores[0])
        rows.append([variant, *(f"{mean(score):.3f}" for score in scores), each])
    return markdown_table(["loss", "ACC", "NMI", "ARI", "20 neighbors' vote", "ACC of each seed"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.hadis_ablation", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--epochs", type=int, default=recipes.load(RECIPE).epochs, help="default: those of the demo")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with one thread (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if fault := missing_kernels("cpu"):  # the CSV has the seconds of each run
        parser.error(fault)
    commit = current_commit()
    made = {(line["variant"], int(line["seed"])) for line in read_runs(options.out, options.epochs)}
    missing = [(variant, seed) for seed in options.seeds for variant in VARIANTS if (variant, seed) not in made]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = [pool.submit(train, variant, seed, options.epochs, commit) for variant, seed in missing]
        for run in as_completed(runs):
            append_run(options.out, run.result())
            print(f"{run.result().variant}, seed {run.result().seed}: ACC {run.result().acc:.4f}", file=sys.stderr)
    print(table(read_runs(options.out, options.epochs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
