"""Trains by a recipe, and writes a folder with the trained method, its clusters, scores, log and report."""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import deepclust_ext
from deepclust_ext import recipes
from deepclust_ext.data import Features
from deepclust_ext.data.words import item_of, sizes_in_words
from deepclust_ext.evaluation import score_clusters
from deepclust_ext.inference import Trained
from deepclust_ext.inference.weights import digest_of
from deepclust_ext.methods import Boost, ClusterHeadMethod
from deepclust_ext.methods.boost import NO_START
from deepclust_ext.ops._checks import check_seed, counted
from deepclust_ext.recipes import Recipe
from deepclust_ext.recipes.build import make_trainer
from deepclust_ext.runs import baseline
from deepclust_ext.runs.baseline import kmeans_baseline
from deepclust_ext.runs.board import Board
from deepclust_ext.runs.clusters import write_clusters
from deepclust_ext.runs.estimate import seconds_of_a_step
from deepclust_ext.runs.folder import BOARD_NAME, RESULTS, Run, fit_centers, holds_run, read_record, resume_command
from deepclust_ext.runs.log import logged, say
from deepclust_ext.runs.page import write_page
from deepclust_ext.runs.probe import Probe
from deepclust_ext.runs.profile import profiled
from deepclust_ext.runs.signals import stopping
from deepclust_ext.runs.source import UNLABELLED, Source, labels_of
from deepclust_ext.training import Trainer, files
from deepclust_ext.training.files import (
    RunFolder,
    check_writable,
    remove,
    replacing,
    without_nan,
    write_array,
    write_text,
)
from deepclust_ext.training.phases import locate
from deepclust_ext.training.progress import in_words
from deepclust_ext.training.ranks import Ranks
from deepclust_ext.training.stop import Stopped


@dataclass(frozen=True)
class Options:
    """Options of a run in addition to its recipe.

    Attributes:
        seed: Seed of everything random, below 2^32.
        device: Where to train, such as "cpu" or "cuda".
        num_workers: Processes that load images.
        precision: "fp32" or "bf16", see :class:`deepclust_ext.training.TrainConfig`.
        compile: Whether torch.compile compiles the training step.
        resume: Continue the run that the folder holds.
        overwrite: Replace the run that the folder holds.
        score_every: Epochs between two scores, which need labels; 0 for none.
        profile: Whether to print where the time of an epoch goes.

    Raises:
        TypeError: If the seed is no integer.
        ValueError: If it is negative, or 2^32 or more.
    """

    seed: int = 0
    device: str = "cpu"
    num_workers: int = 0
    precision: str = "fp32"
    compile: bool = False
    resume: bool = False
    overwrite: bool = False
    score_every: int = 0
    profile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))


def train(
    recipe: Recipe,
    images: Dataset[Any] | Mapping[str, Dataset[Any]],
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    source: Source | None = None,
    reasons: tuple[str, ...] = (),
    start: Run | None = None,
) -> Run:
    """Train a method, and write everything about the run into a folder.

    The folder gets ``recipe.yaml``, which repeats the run, ``run.json``, ``history.jsonl``, ``checkpoint.pt``,
    ``train.log``, ``clusters.csv``, ``report.html``, and for a method without a cluster head ``centers.npy``. If
    ``torch.distributed`` is initialized, all ranks train together, and only rank 0 writes and scores.

    Args:
        recipe: All settings.
        images: Map-style, of images or of tuples that begin with one; an attribute ``labels`` is for scores alone. Or
            several data sets by name, see :class:`deepclust_ext.training.Trainer`.
        out: The folder.
        options: Other options; None for the defaults.
        source: Where the images are, so that they can be opened again; None if they are only in memory.
        reasons: The reasons for this recipe, for the log.
        start: The run whose weights Boost starts from, which is not needed afterwards; None for all other methods.

    Raises:
        FileNotFoundError: If there is nothing to resume.
        FileExistsError: If the folder is not empty, and its run is neither resumed nor overwritten.
        FloatingPointError: If a loss or a weight is not finite.
        KeyboardInterrupt: If the user interrupts, see :func:`deepclust_ext.runs.signals.stopping`.
        OSError: If a file cannot be written; the message names it.
        RuntimeError: If another run uses the folder.
        ValueError: If the recipe does not fit the images, the run to resume has other settings, or ``start`` is missing
            for Boost or given for another method.
    """
    options = options or Options()
    since, path = time.perf_counter(), Path(out)
    recipe = replace(recipes.completed(recipe), name=Path(files.RECIPE_NAME).stem)
    data, images = images, images["images"] if isinstance(images, Mapping) else images
    labels, _ = labels_of(images)
    if options.score_every and labels is None:
        raise ValueError(UNLABELLED.format(options.score_every))
    ranks = Ranks()
    ranks.on_first(lambda: check_folder(path, resume=options.resume, overwrite=options.overwrite))
    trainer = make_trainer(
        recipe,
        data,
        path,
        seed=options.seed,
        num_workers=options.num_workers,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        gather_distributed=ranks.count > 1,
    )
    begun = _start(trainer, start, resume=options.resume)
    with ExitStack() as stack:
        # No other run comes in before the results are written.
        run_folder = stack.enter_context(ranks.held_by_first(trainer.folder))
        ranks.on_first(lambda: run_folder.check(resume=options.resume, overwrite=options.overwrite))
        before = read_record(path) if options.resume else {}
        # Before anything is written or removed.
        history = trainer.check_resume()["history"] if options.resume else []
        record = _record(trainer, options, source, before)
        if begun or "start" in before:
            record["start"] = begun or before["start"]

        def begin() -> None:
            if options.resume:
                for name in RESULTS:
                    remove(path / name)
            else:
                _clear(run_folder)
            run_folder.begun = files.BEGINNINGS
            write_record(path, record)  # first of all, so that a run killed here is known for one
            stack.enter_context(logged(path / files.LOG_NAME))
            for line in (*reasons, *getattr(images, "notes", ())[1:]):  # the first is said on opening
                say(line)
            write_text(path / files.RECIPE_NAME, recipes.dump(recipe))
            if getattr(images, "skipped", None):
                with replacing(path / files.SKIPPED_NAME) as unfinished:
                    images.write_skipped(unfinished)  # type: ignore[attr-defined]

        ranks.on_first(begin)
        _say_how_long(trainer, len(history))
        probe = Probe(trainer, labels, options.score_every)
        board = stack.enter_context(Board(path / BOARD_NAME, written=ranks.first))
        profiling = profiled(trainer) if options.profile and ranks.first else nullcontext()
        with _marked(path, record, ranks), stopping(trainer), profiling:
            trainer.fit(
                resume=options.resume,
                overwrite=not options.resume,
                after_epoch=lambda epoch: board.write(epoch, probe(epoch)),
            )
        record["seconds"]["training"] = sum(epoch["seconds"] for epoch in trainer.history)
        if ranks.first:
            say(f"embedding and clustering the {item_of(images)}s")
        centers, rows, shares = _clustered(trainer, recipe, options)
        record["sizes"] = shares.argmax(1).bincount(minlength=recipe.data.num_clusters).tolist()
        record["status"] = "ended"
        run = Run(path, recipe, trainer.method, trainer.history, record, centers)
        if ranks.first:
            write_text(path / files.RECIPE_NAME, recipes.dump(recipe))  # again, if the folder was removed meanwhile
            write_clusters(path / files.CLUSTERS_NAME, images, shares)
            if labels is not None:
                record["scores"] = asdict(score_clusters(labels, shares.argmax(1), rows, recipe.data.num_clusters))
            if isinstance(images, Features):
                say("k-means on the features, to compare with")
                record["baseline"] = kmeans_baseline(images, recipe, shares.argmax(1), seed=options.seed)
            # A process that was stopped or killed has not recorded its time, but that of its epochs is known.
            known = max(before.get("seconds", {}).get("total", 0.0), sum(epoch["seconds"] for epoch in history))
            record["seconds"]["total"] = known + time.perf_counter() - since
            write_page(run, images, rows, shares)
            write_record(path, record)
    return run


def _start(trainer: Trainer, start: Run | None, *, resume: bool) -> dict[str, str]:
    """Give Boost the weights of a run, and return the record's entry about it; nothing for other methods."""
    method = trainer.method
    if not isinstance(method, Boost):
        if start is not None:
            raise ValueError(f"start: expected none for {type(method).__name__}, which begins anew, got {start.path}")
        return {}
    if resume:
        return {}
    if start is None:
        raise ValueError(f"start: expected a run, {NO_START}, got none")
    trained = start.method
    method.start_from(trained)
    weights = digest_of(trained.inference_network())
    return {"run": str(start.path.resolve()), "method": method.base.lower(), "weights": weights}


def recorded_options(path: Path) -> Options:
    """Return the options of a run; FileNotFoundError or ValueError if the folder does not have them."""
    config = read_record(path)["config"]
    return Options(**{field.name: config[field.name] for field in fields(Options) if field.name in config})


def check_folder(path: Path, *, resume: bool, overwrite: bool, data: Sequence[str] = ()) -> None:
    """Require a folder for a run: an empty one, unless its run is to be resumed or overwritten.

    Args:
        path: The folder.
        resume: Whether its run goes on.
        overwrite: Whether its run is removed before the first step.
        data: Folders and files of the images, which must not be removed with it.

    Raises:
        FileExistsError: If it is not empty, or is to be overwritten and holds no run or some of the data.
        NotADirectoryError: If something else is in its way.
        PermissionError: If nothing can be written there.
    """
    check_writable(path, "out")
    if resume or not path.is_dir():
        return
    # Of a run that has not begun: its lock, what it keeps, and what it was killed at.
    own: tuple[str, ...] = ("run.lock", "images-*", "features-*", ".run.tmp.json")
    if files.has_only_begun(path):
        own += (*files.BEGINNINGS, BOARD_NAME, ".*.tmp.*")
    found = sorted(entry.name for entry in path.iterdir() if not any(map(entry.match, own)))
    if found and overwrite and not holds_run(path):
        raise FileExistsError(f"out: expected an empty folder, or one with a run to overwrite, got {path}")
    for place in map(Path, data):
        if overwrite and place.name in files.RUN_FILES and place.resolve().parent == path.resolve():
            raise FileExistsError(f"out: expected a folder without DATA to overwrite, got {path}, which holds {place}")
    if found and not overwrite:
        goes_on = f"`{resume_command(path)}` continues the run in it, --overwrite replaces it"
        cure = f"; {goes_on}" if holds_run(path) else ""
        raise FileExistsError(f"out: expected an empty folder, got {path}, which holds {', '.join(found[:5])}{cure}")


@contextmanager
def _marked(path: Path, record: dict[str, Any], ranks: Ranks) -> Iterator[None]:
    """Say how a stopped run can be resumed, and record that it was stopped."""
    try:
        yield
    except Stopped:
        if ranks.first:
            write_record(path, {**record, "status": "stopped"})
            say(f"to go on: {resume_command(path)}")
        raise


def _clear(folder: RunFolder) -> None:
    """Remove the files of a run; other files stay."""
    board = folder.path / BOARD_NAME
    for file in board.glob("events.out.tfevents.*"):
        remove(file)
    with suppress(OSError):  # it is missing, or holds something else
        board.rmdir()
    folder.clear()


def _clustered(trainer: Trainer, recipe: Recipe, options: Options) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return centers, if the method needs any, with rows (N, D) and shares (N, K) of its images, embedded once."""
    method, images, ranks = trainer.method, trainer.data["images"], trainer.ranks
    loop = {"num_workers": options.num_workers, **ranks.inference()}
    if isinstance(method, ClusterHeadMethod):
        trained = Trained(method, trainer.test_view)
        return None, *trained.infer(images, batch_size=recipe.batch_size, **loop)
    centers, rows = fit_centers(method, images, recipe, seed=options.seed, **loop)
    if ranks.first:
        write_array(trainer.folder.path / files.CENTERS_NAME, centers.numpy())
    trained = Trained(method, trainer.test_view, centers)
    return centers, rows.float().cpu(), trained.shares_of(rows, batch_size=recipe.batch_size)


def _say_how_long(trainer: Trainer, done: int) -> None:
    """Print an estimate of the time after the epochs that are done; after each epoch the measured time corrects it."""
    epochs, phases = trainer.config.epochs, trainer.config.phases
    if done >= epochs:
        return
    steps = sum(trainer.steps_per_epoch(phases[locate(phases, epoch)[0]]) for epoch in range(done, epochs))
    seconds = seconds_of_a_step(trainer)
    time = f"{counted(steps, 'step')} of {1000 * seconds:.0f} ms: about {in_words(steps * seconds)}"
    if trainer.ranks.first:
        say(f"{counted(epochs, 'epoch')}{f', {epochs - done} left' if done else ''}, {time}")


def _record(trainer: Trainer, options: Options, source: Source | None, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of run.json during the run."""
    device = torch.device(options.device)
    if source is not None:
        source = replace(source.resolved(), range=getattr(trainer.data["images"], "range", None))
    return {
        "status": "training",
        "source": None if source is None else asdict(source),
        "config": {
            "method": type(trainer.method).__name__.lower(),
            "epochs": trainer.config.epochs,
            "batch_size": trainer.config.batch_size,
            **asdict(options),
        },
        "images": len(trainer.data["images"]),  # type: ignore[arg-type]
        "skipped": len(getattr(trainer.data["images"], "skipped", ())),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "ranks": trainer.ranks.count,
        "versions": _versions(),
        "seconds": dict(before.get("seconds", {})),
    }


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {"deepclust_ext": deepclust_ext.__version__, "python": platform.python_version(), **packages}


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write run.json."""
    write_text(path / files.RECORD_NAME, json.dumps(without_nan(record), indent=2, allow_nan=False) + "\n")


def closing_words(run: Run) -> str:
    """Return a summary for the user after a run."""
    sizes, record = run.record["sizes"], run.record
    used = sum(size > 0 for size in sizes)
    found = f"{counted(record['images'], run.item)} in {used} of {counted(len(sizes), 'cluster')}"
    lines = [f"{found}, of {sizes_in_words(sizes, run.item)}"]
    if "scores" in record:
        lines.append(", ".join(f"{name.upper()} {record['scores'][name]:.4f}" for name in ("acc", "nmi", "ari")))
    if "baseline" in record:
        lines.append(baseline.in_words(record["baseline"]))
    lines.append(f"{in_words(record['seconds']['total'])}, of which training {in_words(record['seconds']['training'])}")
    lines.append(f"clusters of all {run.item}s: {run.path / files.CLUSTERS_NAME}")
    lines.append(f"the page of the run, to open in a browser: {run.path / files.REPORT_NAME}")
    return "\n".join(lines)
