"""What a benchmark of an op consists of, and the check that every provider has to pass before it is timed."""

import getpass
import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from benchmarks.clock import Function, clear_gradients, go_backward
from benchmarks.floors import WorkOf
from deepclust_ext import _extension

# What a run's dtype may be, with the torch dtype and torch's setting for float32 products on CUDA. "float32-high" lets
# rivals multiply in TF32, and those of our ops whose results then may be as rough.
DTYPES = {
    "float32": (torch.float32, "highest"),
    "float32-high": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
    "float64": (torch.float64, "highest"),
}
DEFAULT_DTYPES = {"cpu": ("float32",), "cuda": ("float32", "float32-high", "bfloat16", "float16")}


@dataclass(frozen=True)
class Provider:
    """One implementation. `load` imports or compiles it; ImportError there means that it is not installed.

    One that draws random numbers of its own, or computes something else, has a `check`: of its results, the inputs and
    the case's options it says what is wrong, or None.
    """

    load: Callable[[], Function]
    compiled: bool = False
    check: Callable[[Any, tuple[Tensor, ...], Mapping[str, Any]], str | None] | None = None


def convert(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an input as a leaf tensor in another dtype; what is float64 stays so."""
    return x.detach().to(x.dtype if x.dtype == torch.float64 else dtype).requires_grad_(x.requires_grad)


@dataclass(frozen=True, eq=False)  # a case is itself: hashable whatever its fields
class Case:
    """Inputs of one size; `make(rows, dims)` returns them in float32 on the CPU, the same for the same arguments.

    What it returns in float64, numbers that an op takes in no other dtype, stays so. The reference, the yardstick and
    PROVIDERS get `options` too, and the last inputs by `keywords`; rivals of the case and what is timed `beside` get
    the inputs alone, by position.
    """

    distribution: str
    rows: int
    dims: int
    make: Callable[[int, int], tuple[Tensor, ...]]
    rivals: Mapping[str, Provider] = field(default_factory=dict)  # providers that this case has beyond PROVIDERS
    beside: Mapping[str, Function] = field(default_factory=dict)  # timed too, unchecked: they compute something else
    skip: Mapping[str, str] = field(default_factory=dict)  # provider -> status that says why
    keywords: tuple[str, ...] = ()  # names of the last inputs
    options: Mapping[str, float] = field(default_factory=dict)
    works: Mapping[str, WorkOf] | None = None  # in place of the op's WORK
    passes: int = 1  # over the inputs: how often they are read at least where no cache holds them
    pass_bytes: int | None = None  # what each further pass reads, if not all inputs
    modes: Sequence[str] | None = None  # in place of the op's MODES
    memory_only: bool = False  # too large for a check in float64
    checked_rows: int | None = None  # so many rows are checked instead: too large for a check in float64 on this GPU

    @property
    def name(self) -> str:
        """Return what the case is called in tables and on the command line."""
        return f"{self.distribution}-{self.rows}x{self.dims}"

    def inputs(self, dtype: torch.dtype, device: str, rows: int | None = None) -> tuple[Tensor, ...]:
        """Return the inputs as leaf tensors; other `rows` make a smaller copy of the case."""
        made = self.make(rows or self.rows, self.dims)
        return tuple(convert(x.to(device), dtype) for x in made)

    def bind(self, function: Function) -> Function:
        """Return a function of the inputs alone, by position."""
        if not self.keywords and not self.options:
            return function

        def bound(*inputs: Tensor) -> Any:
            positional = len(inputs) - len(self.keywords)
            named = dict(zip(self.keywords, inputs[positional:], strict=True))
            return function(*inputs[:positional], **named, **self.options)

        return bound


@dataclass(frozen=True)
class Yardstick:
    """A computation that is no rival but a known floor, and the floating-point operations it takes."""

    name: str
    function: Function
    flops: Callable[..., int]


class OpBenchmark(Protocol):
    """What benchmarks/ops/OP.py defines. PROVIDERS has "ours", from which ratios are taken."""

    MODES: Sequence[str]  # ("forward",) or ("forward", "backward", "both")
    TRUTH: Function  # from deepclust_ext.reference
    YARDSTICK: Yardstick
    PROVIDERS: Mapping[str, Provider]
    CASES: Sequence[Case]
    SERIES: Sequence[Case]  # growing rows, all else the same: what is run on the CPU where nothing else is asked for
    CUDA_CASES: Sequence[Case]
    WORK: Mapping[str, WorkOf]  # mode -> what ours has to do on CUDA
    FOLLOWS_PRECISION: bool  # whether ours on CUDA multiplies float32 only as precisely as torch is told to


def op_names() -> list[str]:
    """Return the ops that have a benchmark."""
    return sorted(path.stem for path in (Path(__file__).parent / "ops").glob("[!_]*.py"))


def load_op(name: str) -> OpBenchmark:
    """Import the benchmark of an op."""
    return cast(OpBenchmark, importlib.import_module(f"benchmarks.ops.{name}"))


def cases_of(op: OpBenchmark, device: str) -> list[Case]:
    """Return all cases for a type of device."""
    return list({case.name: case for case in (op.CUDA_CASES if device == "cuda" else (*op.CASES, *op.SERIES))}.values())


def modes_of(op: OpBenchmark, case: Case) -> Sequence[str]:
    """Return what is timed of a case."""
    return case.modes or op.MODES


def providers_of(op: OpBenchmark, case: Case) -> dict[str, Provider]:
    """Return all providers of a case, skipped ones included, as functions of its inputs by position."""

    def bind(provider: Provider) -> Provider:
        return replace(provider, load=lambda: case.bind(provider.load()))

    return {**{name: bind(provider) for name, provider in op.PROVIDERS.items()}, **case.rivals}


def load_providers(op: OpBenchmark, case: Case) -> tuple[dict[str, Function], dict[str, str]]:
    """Return the providers of a case that are to be used and, for the others, a status that says why not."""
    loaded: dict[str, Function] = {}
    excluded: dict[str, str] = {}
    for name, provider in providers_of(op, case).items():
        if name in case.skip:
            excluded[name] = case.skip[name]
            continue
        try:
            loaded[name] = provider.load()
        except ImportError as missing:
            excluded[name] = f"not installed: {missing}"
    return loaded, excluded


# The gate


def missing_kernels(device: str) -> str | None:
    """Return why ops on a type of device would be the reference, which no benchmark may call ours; None if native."""
    if device in _extension.NATIVE_DEVICES:
        return None
    reason = _extension.REASON or f"deepclust_ext was built without {device.upper()} kernels"
    cure = f"`{_extension.rebuild_command()}` builds it, `python -m deepclust_ext info` says more"
    return f"expected native kernels for {device}, since ours would be the reference, got none: {reason}. {cure}"


def named_results(modes: Sequence[str], function: Function, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Call a provider and return all that is compared: its outputs and, if it is timed backward, its gradients."""
    torch.manual_seed(0)
    clear_gradients(inputs)
    output = function(*inputs)
    if isinstance(output, Tensor):
        results = {"output": output}
    else:
        results = {f"output {i}": x for i, x in enumerate(output)} if type(output) is tuple else dict(output._asdict())
    if "backward" in modes:
        if output.requires_grad:
            go_backward(output)
        for i, x in enumerate(inputs):
            if x.requires_grad:  # a provider without gradient fails by NaN
                results[f"gradient of input {i}"] = torch.full_like(x, torch.nan) if x.grad is None else x.grad
    return {name: value.detach().clone() for name, value in results.items()}


def error(result: Tensor, truth: Tensor) -> float:
    """Return how far a result is from the truth, relative to the norm of the truth; integers are equal or not.

    The worst rows are left out, one in 500 and two more: where two candidates are equal up to rounding, either is right
    but changes its row altogether. A NaN or Inf anywhere makes the error infinite.
    """
    if result.shape != truth.shape or not result.isfinite().all():
        return float("inf")
    if truth.is_floating_point():
        difference, scale = result.double() - truth, float(truth.norm()) or 1.0
    else:
        difference, scale = (result != truth).double(), float(truth.numel()) ** 0.5
    if truth.dim() == 0:
        return float(difference.abs()) / scale
    by_row = difference.flatten(0, -2).norm(dim=1) if truth.dim() > 1 else difference.abs()
    kept = by_row.sort().values[: len(by_row) - 2 - len(by_row) // 500]
    return float(kept.norm()) / scale


def find_fault(
    results: dict[str, Tensor], budget: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype
) -> str | None:
    """Return what is wrong with a provider's results, or None.

    The rule of the error budget: at most twice the error of the reference, computed in `dtype`, and a little more
    because that error can be 0 by luck.
    """
    for name, result in results.items():
        off = error(result, truth[name])
        slack = 100 * torch.finfo(dtype).eps if result.is_floating_point() else 0.0
        allowed = 2 * error(budget[name], truth[name]) + slack
        if off > allowed:
            return f"WRONG: {name} is off by {off:.1e}, allowed {allowed:.1e}"
    return None


def describe_failure(failure: Exception) -> str:
    """Return the status of a rival that raised: many depend on the GPU, and none may end the run of the others."""
    return f"failed: {type(failure).__name__}: {failure}".splitlines()[0]


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Let torch multiply float32 matrices on CUDA with this precision, "highest" or "high".

    By the older of torch's two settings, which sets the newer one as well; the other way round, torch.compile raises.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def reference_results(op: OpBenchmark, case: Case, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the results of the reference on the same values in another dtype."""
    converted = tuple(convert(x, dtype) for x in inputs)
    return named_results(modes_of(op, case), case.bind(op.TRUTH), converted)


def separate_compiled_code() -> None:
    """Have torch.compile keep its code in a folder for each instruction set, unless a folder is given.

    It finds code again whatever the instruction set, and what was written for vectors of another width is wrong: see
    findings/compiled-kernels-survive-another-instruction-set.sh.
    """
    name = f"torchinductor_{getpass.getuser()}_{torch.backends.cpu.get_cpu_capability()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / name))


def admit(op: OpBenchmark, case: Case, inputs: tuple[Tensor, ...]) -> tuple[dict[str, Function], dict[str, str]]:
    """Load and check every provider; return those fit to be timed and, for the others, a status that says why.

    Rivals have the error budget of the reference in the tested dtype; ours has that in float32, its results rounded,
    and in torch's highest precision unless it follows torch's setting.
    """
    torch.compiler.reset()  # else the recompilation limit, reached after a few sizes, would silently mean eager
    separate_compiled_code()
    dtype, device = inputs[0].dtype, inputs[0].device.type
    checked = case.inputs(dtype, device, case.checked_rows) if case.checked_rows else inputs
    careful_dtype = torch.promote_types(dtype, torch.float32)
    careful_precision = torch.get_float32_matmul_precision() if op.FOLLOWS_PRECISION else "highest"
    fit: dict[str, Function] = {}
    try:
        truth = reference_results(op, case, checked, torch.float64)
        naive = reference_results(op, case, checked, dtype)
        with float32_products(careful_precision):
            careful = reference_results(op, case, checked, careful_dtype)
    except torch.OutOfMemoryError:
        return fit, dict.fromkeys(providers_of(op, case), "skipped: not enough memory to check it")
    careful = {name: value.to(naive[name].dtype) for name, value in careful.items()}
    loaded, excluded = load_providers(op, case)
    providers = providers_of(op, case)
    for name, function in loaded.items():
        budget = (careful, careful_dtype) if name == "ours" else (naive, dtype)
        try:
            if check := providers[name].check:
                fault = check(function(*checked), checked, case.options)
            else:
                fault = find_fault(named_results(modes_of(op, case), function, checked), budget[0], truth, budget[1])
            if case.checked_rows and not fault:  # that it runs at all, and stays finite
                values = named_results(modes_of(op, case), function, inputs).values()
                fault = None if all(value.isfinite().all() for value in values) else "WRONG: not finite"
        except torch.OutOfMemoryError:
            fault = "skipped: out of memory"
        except Exception as failure:
            if name == "ours":
                raise
            fault = describe_failure(failure)
        if fault:
            excluded[name] = fault
        else:
            fit[name] = function
    return fit, excluded
