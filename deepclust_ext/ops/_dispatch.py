"""Calls of the native ops that have a gradient: directly, or in a way that compilers and torch.func can follow.

torch.compile turns a number that changes between calls into a symbol. An argument of type float cannot carry a symbol:
the graph would keep the number of the first call. So an op with numbers has a second overload, ``symbolic``, in which
they are 0-dimensional tensors. torch.func refuses autograd functions that are written in C++. So under its transforms
the same kernels run within an autograd function that is written in Python. Both are made from the op's schema, by the
names of its arguments. Both take tens of microseconds, so other calls do not use them.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deepclust_ext import _extension
from deepclust_ext.reference.autocast import is_autocast_on

_HALF = (torch.float16, torch.bfloat16)


def call(name: str, *arguments: Any) -> tuple[Tensor, ...]:
    """Call an op with all of its arguments and return all of its outputs, always as a tuple."""
    outputs = _call(name, arguments)
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _call(name: str, arguments: Sequence[Any]) -> Tensor | tuple[Tensor, ...]:
    if torch._C._are_functorch_transforms_active():
        return _FUNCTIONS[name].apply(*_cast(arguments))  # type: ignore[no-any-return]
    if torch.compiler.is_compiling() and has_symbol(name, arguments):
        # Products, because compilers make a tensor of a number where it is a factor.
        one = torch.ones((), dtype=torch.float64, device="cpu")
        with_tensors = [
            one * argument if argument is not None and position in _NUMBERS[name] else argument
            for position, argument in enumerate(arguments)
        ]
        return getattr(torch.ops.deepclust_ext, name).symbolic(*_cast(with_tensors))  # type: ignore[no-any-return]
    return _DEFAULTS[name](*arguments)  # type: ignore[no-any-return]


def has_symbol(name: str, arguments: Sequence[Any]) -> bool:
    """Return, while a compiler traces, whether a number may change between calls."""
    from torch.fx.experimental.symbolic_shapes import has_static_value  # slow to import, and rarely needed

    return not all(arguments[i] is None or has_static_value(arguments[i]) for i in _NUMBERS[name])


def _cast(arguments: Sequence[Any]) -> list[Any]:
    """Return the arguments as autocast leaves them to the op: in float32 where they were in half precision."""
    if not is_autocast_on(arguments[0].device.type):
        return list(arguments)
    return [x.float() if isinstance(x, Tensor) and x.dtype in _HALF else x for x in arguments]


class _Gradient:
    """The gradient of an op by its op ``_backward``, whose arguments are among the op's and its outputs, by name.

    Others are ``grad_X`` of an output X, ``want_X`` and ``output_mask`` (which inputs need a gradient), and ``X_rows``.
    """

    def __init__(self, op: torch._ops.OpOverload, backward: torch._ops.OpOverload, run: Callable[..., Any]) -> None:
        self.inputs = [argument.name for argument in op._schema.arguments]
        self.outputs = [output.name for output in op._schema.returns]
        self.arguments = [argument.name for argument in backward._schema.arguments]
        self.gradients = [gradient.name.removeprefix("grad_") for gradient in backward._schema.returns]
        self.run = run

    def setup_context(self, ctx: Any, inputs: Sequence[Any], output: Tensor | Sequence[Tensor]) -> None:
        outputs = [output] if isinstance(output, Tensor) else output
        values = dict(zip(self.inputs, inputs, strict=True)) | dict(zip(self.outputs, outputs, strict=True))
        constant = values.get("differentiable") is False
        ctx.mark_non_differentiable(
            *(values[name] for name in self.outputs if constant or f"grad_{name}" not in self.arguments)
        )
        values |= {f"{name}_rows": x.shape[0] for name, x in values.items() if isinstance(x, Tensor) and x.dim()}
        kept = {name: values[name] for name in self.arguments if name in values}
        ctx.saved_names = [name for name, value in kept.items() if isinstance(value, Tensor)]
        ctx.save_for_backward(*(kept.pop(name) for name in ctx.saved_names))
        ctx.options = kept

    def backward(self, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs = dict(zip(self.inputs, ctx.needs_input_grad, strict=True))
        values = ctx.options | dict(zip(ctx.saved_names, ctx.saved_tensors, strict=True))
        values |= {f"grad_{name}": grad for name, grad in zip(self.outputs, grads, strict=True)}
        values |= {f"want_{name}": needs[name] for name in self.gradients}
        values["output_mask"] = [needs[name] for name in self.gradients]
        results = self.run(*(values[name] for name in self.arguments))
        gradients = dict(zip(self.gradients, results if len(self.gradients) > 1 else [results], strict=True))
        return tuple(gradients[name] if needs[name] and name in gradients else None for name in self.inputs)


def _function(
    op: torch._ops.OpOverload,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> type[torch.autograd.Function]:
    """Return an op as an autograd function for torch.func; vmap calls it for one example after another."""

    def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        calls = [
            function.apply(  # type: ignore[attr-defined]
                *(
                    x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x
                    for x, dim in zip(arguments, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        return tuple(map(torch.stack, zip(*calls, strict=True))), (0,) * len(calls[0])

    methods: dict[str, Callable[..., Any]] = {
        "forward": op,
        "setup_context": setup_context,
        "backward": backward,
        "vmap": vmap,
    }
    function: type[torch.autograd.Function] = type(
        op._schema.name.split("::")[1],
        (torch.autograd.Function,),
        {name: staticmethod(method) for name, method in methods.items()},
    )
    return function


def _function_with_gradient(name: str) -> type[torch.autograd.Function]:
    op, backward = (getattr(torch.ops.deepclust_ext, each).default for each in (name, f"{name}_backward"))
    backward_function = _function(backward, lambda ctx, inputs, output: None, _no_second_derivative(backward))
    gradient = _Gradient(op, backward, backward_function.apply)
    return _function(op, gradient.setup_context, gradient.backward)


def _no_second_derivative(backward: torch._ops.OpOverload) -> Callable[..., Any]:
    def refuse(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(f"derivative for {backward._schema.name} is not implemented")

    return refuse


def _define_symbolic(name: str) -> torch._ops.OpOverload:
    """Define and return the overload ``symbolic`` of an op; an op without numbers is returned itself."""
    op: torch._ops.OpOverload = getattr(torch.ops.deepclust_ext, name).default
    numbers = _positions_of_numbers(op)
    if not numbers:
        return op

    def run(*arguments: Any) -> Any:
        return op(*(x.item() if i in numbers and x is not None else x for i, x in enumerate(arguments)))

    def fake(*arguments: Any) -> Any:  # sizes do not depend on the numbers
        return op(*(0.5 if i in numbers and x is not None else x for i, x in enumerate(arguments)))

    schema = re.sub(r"=[^,)]+", "", str(op._schema)).removeprefix(f"deepclust_ext::{name}")
    schema = re.sub(r"\bfloat\b", "Tensor", schema)
    _LIBRARY.define(f"{name}.symbolic{schema}")
    _LIBRARY.impl(f"{name}.symbolic", run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"deepclust_ext::{name}.symbolic", fake, lib=_LIBRARY)
    symbolic: torch._ops.OpOverload = getattr(torch.ops.deepclust_ext, name).symbolic
    return symbolic


def _positions_of_numbers(op: torch._ops.OpOverload) -> tuple[int, ...]:
    floats = (torch.FloatType.get(), torch.OptionalType(torch.FloatType.get()))
    return tuple(i for i, argument in enumerate(op._schema.arguments) if argument.type in floats)


def _register(name: str) -> None:
    symbolic, backward = _define_symbolic(name), _define_symbolic(f"{name}_backward")
    if not _NUMBERS[name]:
        return
    gradient = _Gradient(symbolic, backward, backward)
    torch.library.register_autograd(
        f"deepclust_ext::{name}.symbolic", gradient.backward, setup_context=gradient.setup_context, lib=_LIBRARY
    )


if _extension.NATIVE_DEVICES:
    _LIBRARY = torch.library.Library("deepclust_ext", "FRAGMENT")
    # The ops that have a gradient.
    _BACKWARD = re.compile(r"deepclust_ext::(\w+)_backward")
    _OPS = sorted(match[1] for match in map(_BACKWARD.fullmatch, torch._C._dispatch_get_all_op_names()) if match)
    _FUNCTIONS = {name: _function_with_gradient(name) for name in _OPS}
    # Found once: to ask torch.ops for them takes small calls a while.
    _DEFAULTS = {name: getattr(torch.ops.deepclust_ext, name).default for name in _OPS}
    _NUMBERS = {name: _positions_of_numbers(_DEFAULTS[name]) for name in _OPS}
    for _name in _OPS:
        _register(_name)
