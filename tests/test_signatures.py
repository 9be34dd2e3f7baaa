"""One signature per op: every place takes the arguments of the schema, and that schema is the one that runs."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch

from deepclust_ext import _extension, ops
from tests.layout import ROOT, function_names
from tests.signatures import (
    FUNCTION_ALONE,
    SCHEMA_ALONE,
    WIDER_TYPES,
    differences,
    entry_arguments,
    read_schemas,
    wrong_signatures,
)

SCHEMAS = read_schemas(ROOT)

needs_library = pytest.mark.skipif(not _extension.NATIVE_DEVICES, reason="no native library")


@pytest.fixture(scope="module")
def wrong() -> list[str]:
    return wrong_signatures(ROOT)


@pytest.mark.parametrize("op", sorted(SCHEMAS))
def test_every_place_takes_the_arguments_of_the_schema(op: str, wrong: list[str]) -> None:
    own = [each for each in wrong if each.startswith(f"{op}: ")]
    assert not own, "\n".join(own)


def test_every_function_and_place_is_of_an_op(wrong: list[str]) -> None:
    others = [each for each in wrong if each.split(":")[0] not in SCHEMAS]
    assert not others, "\n".join(others)


@needs_library
@pytest.mark.parametrize("op", sorted(SCHEMAS))
def test_the_schema_in_the_source_is_the_one_that_runs(op: str) -> None:
    name, _, overload = op.partition(".")
    runs = getattr(getattr(torch.ops.deepclust_ext, name), overload or "default")._schema
    assert torch._C.parse_schema(f"deepclust_ext::{SCHEMAS[op].text}") == runs


@needs_library
def test_no_op_is_without_a_schema_in_the_source() -> None:
    names = [name.split("::") for name in torch._C._dispatch_get_all_op_names() if not name.endswith(".symbolic")]
    assert {op for library, op in names if library == "deepclust_ext"} == set(SCHEMAS)


@needs_library
@pytest.mark.parametrize("op", function_names(ROOT))
def test_the_entry_has_names_and_defaults_of_the_schema(op: str) -> None:
    signature = getattr(importlib.import_module("deepclust_ext._C"), op).__doc__.splitlines()[0]
    assert differences(SCHEMAS[op].arguments, entry_arguments(signature)) == []


def test_exceptions_are_of_arguments_that_are_there() -> None:
    for op, name in SCHEMA_ALONE:
        assert name in [argument.name for argument in SCHEMAS[op].arguments]
    for op, name in (*FUNCTION_ALONE, *WIDER_TYPES):
        assert name in inspect.signature(getattr(ops, op)).parameters


# The checker itself, on planted violations.

PLANTED = {
    "csrc/turns/spin.cpp": """
at::Tensor check_spin(int64_t count);

std::tuple<at::Tensor, at::Tensor> spin(const at::Tensor& rows, double angle, const std::optional<at::Tensor>& axis,
                                        std::string_view unit, bool keep) {
  return op.call(rows, angle, axis, unit, keep);
}

at::Tensor
spin_backward(const at::Tensor& grad_turned,  // (N, D), one for each
              const at::Tensor& rows /* (N, D) */, double angle) {
  return spin(grad_turned, 1);
}

  m.def(
      "spin(Tensor rows, float angle=0.5, Tensor? axis=None, "
      "str unit='turn', bool keep=False) -> (Tensor turned, Tensor kept)");
  m.def("spin_backward(Tensor grad_turned, Tensor rows, float angle) -> Tensor grad_rows");
  m.def("spin_around(Tensor[] rows, SymInt[2] size, ScalarType dtype=float32) -> Tensor");
  m.impl("spin_backward", torch::autograd::autogradNotImplementedFallback());
""",
    "csrc/turns/spin.h": """
std::tuple<at::Tensor, at::Tensor> spin(const at::Tensor& rows,  // (N, D)
                                        double angle, const std::optional<at::Tensor>& axis, std::string_view unit,
                                        bool keep);
at::Tensor spin_around(at::TensorList rows, c10::SymIntArrayRef size, at::ScalarType dtype);
""",
    "csrc/turns/cuda/torch/spin.cpp": """
std::tuple<at::Tensor, at::Tensor> spin_cuda(const at::Tensor& rows_input, double angle, const OptionalTensor& axis,
                                             std::string_view unit, bool /* keep */) {
}
at::Tensor spin_backward_cuda(const at::Tensor& grad_turned, const at::Tensor& rows, double angle) {
}
TORCH_LIBRARY_IMPL(deepclust_ext, CUDA, m) { m.impl("spin", spin_cuda); }
  m.impl("spin_backward", spin_backward_cuda);
""",
    "csrc/module.cpp": "  DEEPCLUST_ENTRY(spin);\n  DEEPCLUST_ENTRY(spin_around);",
    "deepclust_ext/_C.pyi": """
def build_info() -> None: ...
def spin(
    rows: Tensor, angle: float = 0.5, axis: Tensor | None = None, unit: str = "turn", keep: bool = False
) -> tuple[Tensor, ...]: ...
def spin_around(rows: Sequence[Tensor], size: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor: ...
""",
    "deepclust_ext/ops/__init__.py": """
from deepclust_ext.ops.spin import spin, spin_around
__all__ = ["spin", "spin_around"]
""",
    "deepclust_ext/reference/__init__.py": """
from deepclust_ext.reference.spin import spin, spin_around
""",
    "deepclust_ext/reference/spin.py": """
def spin(rows, *, angle=0.5, axis=None, unit="turn", tell=False): ...
def spin_around(rows, size, dtype=torch.float32): ...
""",
    "deepclust_ext/ops/spin.py": """
@overload
def spin(rows: Tensor) -> Tensor: ...
def spin(
    rows: Tensor,
    *,
    angle: float | Tensor = 0.5,
    axis: Tensor | None = None,
    unit: str = "turn",
    tell: bool = False,
) -> Tensor:
    if not _extension.uses_native(rows.device.type):
        return reference.spin(rows, angle=angle, axis=axis, unit=unit, tell=tell)
    return call("spin", rows.detach(), angle, axis, unit)[0]

def spin_around(rows: Sequence[Tensor], size: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    parts = list(rows)
    if parts:
        return reference.spin_around(parts, size, dtype)
    return torch.ops.deepclust_ext.spin_around.default(parts, size, dtype)

def _fake(rows, angle=0.5, axis=None, unit="turn", keep=False): ...
def _fake_backward(grad_turned, rows, angle): ...

torch.library.register_fake("deepclust_ext::spin", _fake)
torch.library.register_fake("deepclust_ext::spin_backward", _fake_backward)
""",
    "deepclust_ext/losses/spin.py": """
values = torch.ops.deepclust_ext.spin.default(rows, 0.5)
gradients = torch.ops.deepclust_ext.spin_backward.default(grad, rows, angle)
""",
}


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with two functions and a gradient, whose arguments agree but for what is listed."""
    for name, text in PLANTED.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setitem(SCHEMA_ALONE, ("spin", "keep"), "a reason")
    monkeypatch.setitem(FUNCTION_ALONE, ("spin", "tell"), "a reason")
    monkeypatch.setitem(WIDER_TYPES, ("spin", "angle"), ("float | Tensor", "a reason"))
    return tmp_path


def test_checker_accepts_arguments_that_agree(planted: Path) -> None:
    assert wrong_signatures(planted) == []
    assert sorted(read_schemas(planted)) == ["spin", "spin_around", "spin_backward"]


CPP, HEADER, CUDA = "csrc/turns/spin.cpp", "csrc/turns/spin.h", "csrc/turns/cuda/torch/spin.cpp"
STUB, OPS, REFERENCE = "deepclust_ext/_C.pyi", "deepclust_ext/ops/spin.py", "deepclust_ext/reference/spin.py"


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        # Declarations and definitions in C++.
        (HEADER, "double angle", "double turn", f"spin: {HEADER}: spin: angle: missing, the schema has it"),
        (HEADER, "dtype", "type", f"spin_around: {HEADER}: spin_around: type: the schema has none of that name"),
        (CPP, "bool keep) {", "bool) {", f"spin: {CPP}: spin: keep: missing, the schema has it"),
        (CPP, "rows /* (N, D) */", "lines", f"spin_backward: {CPP}: spin_backward: rows: missing, the schema has it"),
        (CUDA, "rows_input", "input", f"spin: {CUDA}: spin_cuda: rows: missing, the schema has it"),
        (CUDA, "/* keep */", "/* kept */", f"spin: {CUDA}: spin_cuda: keep: missing, the schema has it"),
        (
            CUDA,
            "grad_turned, const at::Tensor& rows",
            "rows, const at::Tensor& grad_turned",
            f"spin_backward: {CUDA}: spin_backward_cuda: rows: expected grad_turned here, as in the schema",
        ),
        (CUDA, '"spin", spin_cuda', '"spin", spin_gpu', f"spin: {CUDA}: spin_gpu: registered, but not defined here"),
        (CUDA, '"spin", spin', '"leap", spin', f"leap: {CUDA}: spin_cuda: no op of that name is defined"),
        # The entries and their stub.
        ("csrc/module.cpp", "(spin)", "(leap)", "spin: csrc/module.cpp: no entry"),
        ("csrc/module.cpp", "(spin)", "(leap)", f"leap: {STUB}: no function"),
        (STUB, "axis: Tensor | None = None, ", "", f"spin: {STUB}: axis: missing, the schema has it"),
        (STUB, "Sequence[int]", "int", f"spin_around: {STUB}: size: expected type Sequence[int], got int"),
        (STUB, "0.5", "0.25", f"spin: {STUB}: angle: expected default 0.5, got 0.25"),
        (STUB, " = torch.float32", "", f"spin_around: {STUB}: dtype: expected default torch.float32, got none"),
        (STUB, "unit: str", "*, unit: str", f"spin: {STUB}: unit: behind *, the entry has none"),
        (STUB, "tuple[Tensor, ...]", "Tensor", f"spin: {STUB}: expected to return tuple[Tensor, Tensor], got Tensor"),
        (STUB, "torch.float32) -> Tensor", "torch.float32) -> int", f"spin_around: {STUB}: expected to return Tensor"),
        # Fake kernels.
        (OPS, "keep=False", "kept=False", f"spin: {OPS}: _fake: keep: missing, the schema has it"),
        (OPS, "angle=0.5, a", "angle=1.0, a", f"spin: {OPS}: _fake: angle: expected default 0.5, got 1.0"),
        (
            OPS,
            "(grad_turned, rows,",
            "(rows, grad_turned,",
            f"spin_backward: {OPS}: _fake_backward: rows: expected grad_turned here, as in the schema",
        ),
        (OPS, "::spin_backward", "::leap_backward", f"leap_backward: {OPS}: _fake_backward: no op of that name is "),
        (OPS, ", _fake_backward)", ", _fake_back)", f"spin_backward: {OPS}: _fake_back: no function of this module"),
        # Public functions and the reference.
        (OPS, "def spin_around", "def spin_round", f"spin_around: {OPS}: no function"),
        (REFERENCE, "def spin_around", "def spin_round", f"spin_around: {REFERENCE}: no function"),
        (OPS, "axis: Tensor | None = None", "axis: Tensor", f"spin: {OPS}: axis: expected default None, got none"),
        (OPS, "angle: float | Tensor", "angle: float", f"spin: {OPS}: angle: expected type float | Tensor, got float"),
        (OPS, "size: Sequence[int]", "size: int", f"spin_around: {OPS}: size: expected type Sequence[int], got int"),
        (OPS, "tell: bool = False", "said: bool = False", f"spin: {OPS}: said: the schema has none of that name"),
        (REFERENCE, 'unit="turn"', 'unit="degree"', f"spin: {REFERENCE}: unit: expected default 'turn', got 'degree'"),
        (REFERENCE, ", tell=False", "", f"spin: {REFERENCE}: tell: missing, the public function has it"),
        (
            REFERENCE,
            "(rows, size",
            "(size, rows",
            f"spin_around: {REFERENCE}: size: expected rows here, as in the public function",
        ),
        # Calls of the op and of the reference.
        (OPS, "axis=axis, ", "", f"spin: {OPS}, line 13: axis: left out of the call"),
        (OPS, "axis=axis", "axis=unit", f"spin: {OPS}, line 13: axis: the call gives unit"),
        (OPS, "reference.spin(", "reference.leap(", f"spin: {OPS}: no call of the reference"),
        (OPS, "angle, axis, unit)", "angle, axis)", f"spin: {OPS}, line 14: unit: left out of the call"),
        (OPS, "angle, axis, unit)", "axis, angle, unit)", f"spin: {OPS}, line 14: angle: the call gives axis"),
        (OPS, "default(parts, size", "default(size, parts", f"spin_around: {OPS}, line 20: rows: the call gives size"),
        (OPS, 'call("spin"', 'call("leap"', f"spin: {OPS}: no call of the op"),
        (
            "deepclust_ext/losses/spin.py",
            "rows, angle",
            "angle, rows",
            "spin_backward: deepclust_ext/losses/spin.py, line 3: rows: the call gives angle",
        ),
        # The schema.
        (CPP, "bool keep=False", "bool keep", f"spin: {OPS}, line 14: keep: left out of the call"),
        (CPP, "SymInt[2] size", "int[2] size", "spin_around: schema: size: expected type SymInt[2], got int[2]"),
        (CPP, '"spin_around(', '"spin_twice(', "spin_around: no schema in csrc/*/*.cpp"),
    ],
)
def test_checker_names_op_place_and_argument(planted: Path, path: str, old: str, new: str, message: str) -> None:
    text = (planted / path).read_text()
    assert old in text
    (planted / path).write_text(text.replace(old, new, 1))
    wrong = wrong_signatures(planted)
    assert any(found.startswith(message) for found in wrong), wrong


def test_checker_wants_a_reason_for_what_is_of_one_side_alone(planted: Path) -> None:
    SCHEMA_ALONE.pop(("spin", "keep"))
    FUNCTION_ALONE.pop(("spin", "tell"))
    WIDER_TYPES.pop(("spin", "angle"))
    assert wrong_signatures(planted) == [
        f"spin: {OPS}: keep: missing, the schema has it",
        f"spin: {OPS}: tell: the schema has none of that name",
        f"spin: {OPS}: angle: expected type float, got float | Tensor",
        f"spin: {OPS}, line 14: keep: left out of the call",
    ]
