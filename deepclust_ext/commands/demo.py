"""Cluster 1,797 scanned digits without labels: train, score, and draw what was found.

Nothing is downloaded: the scans ship with scikit-learn. Labels are read only after training, for the scores and figure.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from deepclust_ext.data import Digits
    from deepclust_ext.evaluation.scores import ClusterScores, Evaluation
    from deepclust_ext.methods import ClusteringMethod
    from deepclust_ext.training.trainer import Trainer

NUM_CLUSTERS = 10
FEATURE_DIM = 2048  # of the demo's network


class Defaults(NamedTuple):
    """What the options of a method are where the user gives none."""

    epochs: int
    batch_size: int


METHODS = {
    "hadis": Defaults(epochs=80, batch_size=64),
    "sacc": Defaults(epochs=80, batch_size=128),
    "clc": Defaults(epochs=60, batch_size=128),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options to a parser."""
    parser.add_argument("--method", choices=METHODS, default="hadis", help="what to train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    for name, what in (("epochs", "passes over the scans"), ("batch_size", "images of a step")):
        defaults = ", ".join(f"{method} {getattr(default, name)}" for method, default in METHODS.items())
        parser.add_argument("--" + name.replace("_", "-"), type=int, help=f"{what} (default: {defaults})")
    parser.add_argument("--out", type=Path, help="folder for results (default: runs/demo-METHOD-seedSEED)")
    parser.add_argument("--resume", action="store_true", help="continue the run that --out holds")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--profile", action="store_true", help="print where the time goes; meant for few epochs")


def run(args: argparse.Namespace) -> int:
    """Run the demo with the parsed options, print the scores and return the exit status 0.

    Raises:
        ValueError: If an option does not fit the data.
        FileNotFoundError: If there is nothing to resume.
    """
    import torch

    from deepclust_ext.data import Digits
    from deepclust_ext.evaluation.scores import evaluate

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    start = time.perf_counter()
    out = args.out or Path("runs") / f"demo-{args.method}-seed{args.seed}"
    digits = Digits()
    trainer = make_trainer(args.method, out, digits, args.seed, args.epochs, args.batch_size)
    pixels = _score_pixels(digits, args.seed)
    untrained = evaluate(trainer.method, digits, seed=args.seed)
    training_start = time.perf_counter()
    if args.profile:
        print(_profiled_fit(trainer, args.resume))
    else:
        trainer.fit(resume=args.resume)
    training_seconds = time.perf_counter() - training_start
    trained = evaluate(trainer.method, digits, seed=args.seed)
    name = f"{args.method}, {trainer.config.epochs} epochs"
    _print_scores(
        {"k-means on pixels": pixels, "k-means, untrained network": untrained.kmeans, name: trained.clusters},
        {"untrained": untrained, "trained": trained},
    )
    figure = _draw(out / "overview.png", trainer, digits.labels)
    seconds = time.perf_counter() - start
    record = {
        "config": {"method": args.method, "resume": args.resume} | asdict(trainer.config),
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "metrics": {"pixels": asdict(pixels), "untrained": asdict(untrained), "trained": asdict(trained)},
        "seconds": {"training": training_seconds, "total": seconds},
        "history": trainer.history,
    }
    (out / "run.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{seconds:.0f} s, of which training {training_seconds:.0f} s; written: {out / 'run.json'}{figure}")
    return 0


def make_trainer(
    name: str,
    out: Path,
    digits: "Digits",
    seed: int,
    epochs: int | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> "Trainer":
    """Return the trainer of a method with the demo's settings, which ``options`` of its class override."""
    from deepclust_ext.training.trainer import TrainConfig, Trainer, seed_everything

    seed_everything(seed)
    epochs = METHODS[name].epochs if epochs is None else epochs
    batch_size = METHODS[name].batch_size if batch_size is None else batch_size
    makers: dict[str, Callable[..., Any]] = {"hadis": _hadis, "sacc": _sacc, "clc": _clc}
    method, optimizer, augmentations = makers[name](batch_size, **options)
    config = TrainConfig(
        epochs=epochs,
        warmup_epochs=epochs // 8,
        lr_warmup_epochs=min(2, epochs),
        batch_size=batch_size,
        seed=seed,
    )
    return Trainer(method, optimizer, digits, augmentations, config, out)


def _hadis(batch_size: int, **options: Any) -> "tuple[ClusteringMethod, Optimizer, list[nn.Module]]":
    """HaDis with narrow heads and two views of one kind."""
    from deepclust_ext.data import RandomAffine
    from deepclust_ext.methods import HaDis

    # Clusters of 180 scans need firmer prototypes than the paper's of 6,000, and 28 steps an epoch a quicker teacher.
    defaults = {"hidden_dim": 256, "embedding_dim": 64, "momentum": 0.99, "prototype_weight": 3.0}
    method = HaDis(_backbone(), FEATURE_DIM, NUM_CLUSTERS, **(defaults | options))
    view = RandomAffine(degrees=15, shear=0.15, scale=0.15, stretch=0.075, shift=0.09375)
    return method, method.make_optimizer(batch_size), [view, view]


def _sacc(batch_size: int, **options: Any) -> "tuple[ClusteringMethod, Optimizer, list[nn.Module]]":
    """SACC with narrow heads, two weak views and a strong one; its learning rate is the same for any batch."""
    from deepclust_ext.methods import SACC, OptimizerSettings

    method = SACC(_backbone(), FEATURE_DIM, NUM_CLUSTERS, **({"hidden_dim": 256} | options))
    weak, strong = _weak_and_strong_view()
    return method, method.make_optimizer(batch_size, OptimizerSettings(lr=1e-3)), [weak, weak, strong]


def _clc(batch_size: int, **options: Any) -> "tuple[ClusteringMethod, Optimizer, list[nn.Module]]":
    """CLC with narrow heads, a short queue, a quick momentum network, a weak view and a strong one."""
    from deepclust_ext.methods import CLC

    # An epoch has 14 steps of 256 keys: a queue longer than these four would hold most scans themselves, and codes of a
    # network that lags behind by epochs make permanent what the first epochs got wrong.
    defaults = {"hidden_dim": 256, "embedding_dim": 64, "queue_size": 1024, "momentum": 0.8}
    method = CLC(_backbone(), FEATURE_DIM, NUM_CLUSTERS, **(defaults | options))
    return method, method.make_optimizer(batch_size), list(_weak_and_strong_view())


def _weak_and_strong_view() -> "tuple[nn.Module, nn.Module]":
    """Return views for the methods whose cluster head sees nothing else."""
    from torch import nn

    from deepclust_ext.data import RandomAffine, RandomGamma

    # Where strokes and aspect never change, the head settles on mixtures of digits that have them in common.
    gamma = RandomGamma(0.7)
    weak = nn.Sequential(RandomAffine(degrees=15, shear=0.15, scale=0.15, stretch=0.15, shift=0.09375), gamma)
    strong = nn.Sequential(RandomAffine(degrees=25, shear=0.25, scale=0.25, stretch=0.35, shift=0.16), gamma)
    return weak, strong


def _backbone() -> "nn.Module":
    """Return a network of three convolutions for 8 x 8 pixels, with FEATURE_DIM outputs."""
    import torch
    from torch import nn

    def block(in_channels: int, out_channels: int) -> list[nn.Module]:
        convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]

    backbone = nn.Sequential(
        *block(1, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2), *block(64, 512), nn.Flatten()
    )
    # Channels last halves the time of these convolutions on a CPU.
    return backbone.to(memory_format=torch.channels_last)


def _profiled_fit(trainer: "Trainer", resume: bool) -> str:
    """Train under torch's profiler and return a table of the labelled stages of an epoch."""
    from torch.profiler import ProfilerActivity, profile

    from deepclust_ext.training.trainer import STAGES

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        history = trainer.fit(resume=resume)
    total = sum(record["seconds"] for record in history)
    spent = {event.key: event.cpu_time_total / 1e6 for event in profiler.key_averages() if event.key in STAGES}
    spent["rest"] = total - sum(spent.values())
    rows = [f"{name:<12}{1e3 * spent[name] / len(history):8.0f} ms {spent[name] / total:6.0%}" for name in spent]
    return "\n".join([f"an epoch, mean of {len(history)}", *rows])


def _score_pixels(digits: "Digits", seed: int) -> "ClusterScores":
    from deepclust_ext.cluster import KMeans
    from deepclust_ext.evaluation.scores import score_clusters

    pixels = digits.images.flatten(1)
    predicted = KMeans(NUM_CLUSTERS, n_init=20, random_state=seed).fit_predict(pixels)
    return score_clusters(digits.labels, predicted, pixels, NUM_CLUSTERS)


def _print_scores(clusters: "dict[str, ClusterScores]", evaluations: "dict[str, Evaluation]") -> None:
    width = max(map(len, clusters))
    print(f"{'':{width}}    ACC    NMI    ARI  smallest and largest cluster")
    for name, scores in clusters.items():
        numbers = " ".join(f"{score:6.4f}" for score in (scores.acc, scores.nmi, scores.ari))
        print(f"{name:{width}} {numbers}  {min(scores.sizes)}, {max(scores.sizes)}")
    accuracies = ", ".join(f"{name} {evaluation.knn_accuracy:.4f}" for name, evaluation in evaluations.items())
    print(f"vote of 20 nearest neighbors: {accuracies}")


def _draw(path: Path, trainer: "Trainer", labels: "Tensor") -> str:
    """Draw the figure and return how to mention it: its path, or why there is none."""
    from deepclust_ext.evaluation.plots import save_overview

    try:
        save_overview(path, trainer.embed().numpy(), labels.numpy(), trainer.cluster().numpy(), trainer.history)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        return "; no figure, because matplotlib is missing: pip install 'deepclust_ext[plot]'"
    return f" and {path}"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import deepclust_ext

    packages = {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {"deepclust_ext": deepclust_ext.__version__, "python": platform.python_version(), **packages}
