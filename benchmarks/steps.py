"""One training step of each method, taken apart: `python -m benchmarks.steps`.

Two copies of a trainer make their steps in turn: one with the fused ops, one with the plain-PyTorch reference of all of
them, as DEEPCLUST_EXT_BACKEND=reference would. Memory is reused as in training. The first step of both, on the same
parameters, random views and seed, has to give the same loss and the same gradients; a case where it does not is WRONG
and not timed. The parts of a step:

- data: one batch from the trainer's loader, and its views
- forward: the calls of the method's networks, the teacher's or momentum network's too
- loss: the rest of the method's `training_step`, which is losses, noise, queue and logged statistics
- backward: all of it; loss_backward is its beginning, up to the first gradient of a network's output
- optimizer: learning rates, the update, and that of the momentum network

PICI has a case for each of its phases, and a rival more: `plain torch`, the same network and losses as one writes them
without this package, see plain_pici.py. It has to give the same loss, and gradients of the same norms.

k-means, which some methods need once an epoch, is no part of a step. Rows go to the machine's CSV, under the op
training_step.

With `--against FOLDER` the steps of another checkout, which has its own built library, are timed in the same rounds, in
a process of its own: the provider "fused at COMMIT". On the same weights and the same random views its first step has
to give the loss and the norms of the gradients that this one gives. Its data are its own.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.clock import Sample, paired_ratio, sample_rounds, summarize
from benchmarks.floors import markdown_table
from benchmarks.harness import missing_kernels
from benchmarks.other_checkout import Norms, OtherCheckout
from benchmarks.report import (
    ROOT,
    Row,
    Setting,
    csv_path,
    current_commit,
    format_cell,
    instruction_set,
    machine_name,
    update_csv,
)
from benchmarks.step_cases import CASES, DIGITS, plain_trainer
from deepclust_ext import _extension, inference
from deepclust_ext.data.views import seen_by
from deepclust_ext.methods import CLC, PICI
from deepclust_ext.training import Trainer
from deepclust_ext.training.loading import Batch

PROVIDERS = ("fused", "reference")
PLAIN = "plain torch"  # of PICI alone

#: Modes of the rows, and what the table calls them.
PARTS = {
    "data": "data",
    "forward": "forward",
    "loss": "loss",
    "backward": "backward",
    "loss_backward": "of which the loss",
    "optimizer": "optimizer",
    "step": "step",
}

#: Largest difference in the L2 norm, relative to the reference: rounding grows on its way back through the networks.
TOLERANCE = 1e-4


class Stepper:
    """Makes the steps of a trainer one at a time and times their parts.

    Args:
        trainer: Its networks are those children of the method that have parameters.
        pseudo_labels: (N,) for the images of the data set, or None.
    """

    def __init__(self, trainer: Trainer, pseudo_labels: Tensor | None) -> None:
        self.trainer = trainer
        self.pseudo_labels = pseudo_labels
        self.networks = {name: child for name, child in trainer.method.named_children() if list(child.parameters())}
        self.loss = torch.tensor(torch.nan)  # of the last step
        self._steps = count()
        self._batches = _batches(trainer)
        self._entered = self._in_networks = 0.0
        self._arrivals: list[float] = []  # when the backward pass came to the outputs of networks
        self._depth = 0  # of calls within networks: a network may have more ways in than its forward
        for part in (part for network in self.networks.values() for part in network.modules()):
            part.register_forward_pre_hook(self._enter)
            part.register_forward_hook(self._leave)
        trainer.method.train()

    def step(self) -> Sample:
        """Make one step as the trainer does, and return the seconds of its parts."""
        trainer = self.trainer
        start = perf_counter()
        batch = next(self._batches)
        epoch = next(self._steps) / trainer.steps_per_epoch(trainer.config.phases[-1])
        labels = None if self.pseudo_labels is None else self.pseudo_labels[batch.places]
        views = [seen_by(view, batch.images, batch.places) for view in trainer.views]
        return self._learn(batch, views, labels, epoch, start)

    def fixed_step(self) -> Norms:
        """Make a step on random views and labels, and return its loss and the norm of each network's gradient."""
        trainer = self.trainer
        batch = next(self._batches)
        generator = torch.Generator().manual_seed(0)
        shapes = [seen_by(view, batch.images, batch.places).shape for view in trainer.views]
        views = [torch.rand(shape, generator=generator) for shape in shapes]
        labels = torch.arange(len(batch.places)) % trainer.method.num_clusters
        torch.manual_seed(0)
        self._learn(batch, views, labels, 0.0, perf_counter())
        return {name: float(value.norm()) for name, value in self.results().items()}

    def _learn(
        self, batch: Batch, views: Sequence[Tensor], labels: Tensor | None, epoch: float, start: float
    ) -> Sample:
        """Make the rest of a step whose views are there, and return the seconds of all its parts."""
        trainer, method = self.trainer, self.trainer.method
        have_data = perf_counter()
        self._in_networks = 0.0
        self._arrivals.clear()
        loss, _ = method.training_step(views, labels, batch.places, terms=batch.terms)
        have_loss = perf_counter()
        trainer.optimizer.zero_grad()
        loss.backward()
        have_gradients = perf_counter()
        trainer._set_rates(epoch)
        trainer.optimizer.step()
        method.after_step()
        end = perf_counter()
        self.loss = loss.detach()
        return {
            "data": have_data - start,
            "forward": self._in_networks,
            "loss": have_loss - have_data - self._in_networks,
            "backward": have_gradients - have_loss,
            "loss_backward": self._arrivals[0] - have_loss,
            "optimizer": end - have_gradients,
            "step": end - start,
        }

    def results(self) -> dict[str, Tensor]:
        """Return what two providers have to agree on: the loss of the last step and the gradients of each network."""
        found = {
            name: [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
            for name, network in self.networks.items()
        }
        gradients = {f"gradient of {name}": torch.cat(parts) for name, parts in found.items() if parts}
        return {"loss": self.loss, **gradients}

    def _enter(self, network: nn.Module, inputs: Any) -> None:
        if not self._depth:
            self._entered = perf_counter()
        self._depth += 1

    def _leave(self, network: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._in_networks += perf_counter() - self._entered
        for tensor in (output,) if isinstance(output, Tensor) else output:
            if tensor.requires_grad:
                tensor.register_hook(self._arrive)

    def _arrive(self, gradient: Tensor) -> None:
        # Autograd runs what was recorded last first: at the first arrival the loss is all done.
        self._arrivals.append(perf_counter())


def _batches(trainer: Trainer) -> Iterator[Batch]:
    """Yield the batches of the last phase, epoch after epoch."""
    for epoch in count():
        yield from trainer._batches(trainer.config.phases[-1], epoch)


def memory_of_training() -> AbstractContextManager[Any]:
    """Return the context in which a trainer makes its steps; older packages have none."""
    context: AbstractContextManager[Any] = getattr(inference, "reused_memory", nullcontext)()
    return context


def provided_by(provider: str) -> AbstractContextManager[Any]:
    """Return a context in which the ops are fused, or all of them their reference."""
    return nullcontext() if provider != "reference" else patch.object(_extension, "NATIVE_DEVICES", frozenset())


def make_steppers(make: Callable[[], Trainer]) -> dict[str, Stepper]:
    """Return a stepper for each provider, all in the same state: that after the warm-up, with queues full."""
    trainers = {provider: make() for provider in PROVIDERS}
    method = trainers["fused"].method
    if isinstance(method, PICI):
        trainers[PLAIN] = plain_trainer(make)
    labels = trainers["fused"].kmeans(n_init=1) if method.labelled_terms else None
    for trainer in trainers.values():
        if isinstance(trainer.method, CLC):
            # The time does not depend on the keys, and at a batch a step some queues take hundreds of steps to fill.
            generator = torch.Generator().manual_seed(0)
            trainer.method.key_queue.normal_(generator=generator)
            trainer.method.score_queue.normal_(generator=generator)
            trainer.method.num_enqueued = len(trainer.method.key_queue)
    return {provider: Stepper(trainer, labels) for provider, trainer in trainers.items()}


def find_difference(norms: Norms, truth: Norms) -> str | None:
    """Return what another checkout's step gives otherwise, or another network's, or None."""
    for name, expected in truth.items():
        off = abs(norms.get(name, torch.nan) - expected) / abs(expected)
        if not off <= TOLERANCE:
            return f"WRONG: {name} is off by {off:.1e} from ours, allowed {TOLERANCE:.0e}"
    return None


def find_fault(results: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with the fused step's results, or None."""
    for name, expected in truth.items():
        off = float((results[name] - expected).norm() / expected.norm())
        if not off <= TOLERANCE:  # NaN too
            return f"WRONG: {name} is off by {off:.1e}, allowed {TOLERANCE:.0e}"
    return None


def measure(
    setting: Setting, seconds: float, case: str, make: Callable[[], Trainer], against: Path | None = None
) -> list[Row]:
    """Check and time the parts of a step; a case that is wrong or not installed has one row that says so."""
    row = partial(Row, op="training_step", case=case, **asdict(setting))
    try:
        steppers: dict[str, Any] = {**make_steppers(make)}
    except ImportError as missing:
        return [row(provider="fused", mode="step", status=f"not installed: {missing}")]

    def step(provider: str) -> Sample:
        with provided_by(provider):
            taken: Sample = steppers[provider].step()
            return taken

    results = {}
    with ExitStack() as stack:
        stack.enter_context(memory_of_training())
        if against:
            other = OtherCheckout(against, case, setting.threads)
            stack.callback(other.close)
            provider = f"fused at {current_commit(against)}"
            if fault := find_difference(other.fixed_step(), make_steppers(make)["fused"].fixed_step()):
                return [row(provider=provider, mode="step", status=fault)]
            steppers[provider] = other
        for provider in PROVIDERS:
            with provided_by(provider):
                norms = steppers[provider].fixed_step()
            results[provider] = steppers[provider].results()
        if fault := find_fault(results["fused"], results["reference"]):
            return [row(provider="fused", mode="step", status=fault)]
        if PLAIN in steppers and (fault := find_difference(steppers[PLAIN].fixed_step(), norms)):
            return [row(provider=PLAIN, mode="step", status=fault)]
        times = sample_rounds({provider: partial(step, provider) for provider in steppers}, seconds)
    return [
        row(
            provider=provider,
            mode=mode,
            status="ok",
            rounds=len(taken),
            **asdict(summarize(taken)),
            per_ours=paired_ratio(taken, times["fused", mode]),
        )
        for (provider, mode), taken in times.items()
    ]


def measure_digits(setting: Setting, seconds: float) -> list[Row]:
    """Measure every method on the digits for about so many seconds; no seconds mean the first one, briefly."""
    cases = [case for case in CASES if "-digits-" in case]
    return [row for case in (cases if seconds else cases[:1]) for row in measure(setting, seconds, case, CASES[case])]


def step_table(rows: Sequence[Row]) -> str:
    """Return the parts of one case's step in Markdown: ms and share of the step, and the ratios."""
    found = {(row.provider, row.mode): row for row in rows}
    providers = list(dict.fromkeys(row.provider for row in rows))
    rivals = [provider for provider in providers if provider != "fused"]
    titles = ["part", *(title for provider in providers for title in (f"{provider} ms", "share"))]
    titles += [f"{provider} / fused" for provider in rivals]
    lines = []
    for mode, name in PARTS.items():
        cells = [name]
        for provider in providers:
            taken, whole = (found[provider, part].median_ms for part in (mode, "step"))
            assert taken is not None
            assert whole is not None
            cells += [format_cell(taken), f"{taken / whole:.1%}"]
        lines.append(cells + [format_cell(found[provider, mode].per_ours) for provider in rivals])
    return markdown_table(titles, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table for each case, update the machine's CSV; return 1 if a case is wrong."""
    parser = argparse.ArgumentParser("python -m benchmarks.steps", description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=DIGITS, help="this one only (default: all)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each case; at least 9 rounds (default: 20)")
    parser.add_argument("--case", choices=CASES, help="this one only (default: all)")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, built, timed in the same run")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch chooses)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV")
    options = parser.parse_args(arguments)
    if missing := missing_kernels("cpu"):
        parser.error(missing)
    if options.against and not (options.against / "deepclust_ext" / "__init__.py").is_file():
        parser.error(f"--against: expected a checkout of deepclust_ext, got {options.against}")
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = Setting(
        machine=machine_name("cpu"),
        instruction_set=instruction_set("cpu"),
        device="cpu",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=current_commit(),
        dtype="float32",
    )
    wrong = False
    for case, make in CASES.items():
        if (options.method and case.split("-")[0] != options.method) or options.case not in (None, case):
            continue
        rows = measure(setting, options.seconds, case, make, options.against)
        update_csv(csv_path(options.out, setting), rows)
        status = rows[0].status
        print(f"\n{case}\n\n{step_table(rows) if status == 'ok' else status}", flush=True)
        wrong |= status.startswith("WRONG")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
