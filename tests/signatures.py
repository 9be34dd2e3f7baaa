"""What tests/test_signatures.py checks: every place that takes the arguments of an op takes those of its schema.

The schema, a string in csrc/FAMILY/OP.cpp, is the one signature. The entries of the extension module are made from it
when the library loads. Other places repeat it, and what they repeat is compared here: names, order, types, defaults.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.layout import function_names, imported_from, text_of, without_comments

# By op and argument, why the schema has it and the public function does not.
SCHEMA_ALONE = {
    ("diffused_neighbor_gather", "seed"): "the function draws it from the generator",
    ("fused_contrastive_loss", "keep_gradient"): "the function finds it from what requires a gradient",
}

# By op and argument, why the public function has it and the schema does not.
FUNCTION_ALONE = {
    ("diffused_neighbor_gather", "generator"): "an op takes none: the function draws the seed from it",
    ("fused_hsd_loss", "return_stats"): "the op always returns them",
    ("sinkhorn_knopp", "out"): "the overload of that name has it",
    ("sinkhorn_knopp", "return_num_iters"): "the op always returns it",
}

# By op and argument, the type in the public function where it is wider than the schema's, and why.
WIDER_TYPES = {
    ("augment_views", "images"): ("Tensor | Sequence[Tensor]", "of a batch the function makes a list"),
    ("augment_views", "size"): ("int | tuple[int, int]", "of one number the function makes two"),
    ("fused_contrastive_loss", "temperature"): ("float | Tensor", "a tensor gets a gradient, by another way"),
    ("fused_hsd_loss", "temperature"): ("float | Tensor", "a tensor gets a gradient, by another way"),
}

# By the type in a schema, that in Python.
ANNOTATIONS = {"SymInt": "int", "ScalarType": "torch.dtype"}


class Argument(NamedTuple):
    """An argument as a place has it, its default as Python writes it; what is None is not told there."""

    name: str
    type: str | None = None
    default: str | None = None  # "" where there is none


class Schema(NamedTuple):
    """What a string that defines an op says."""

    text: str
    arguments: list[Argument]
    num_outputs: int


def wrong_signatures(root: Path) -> list[str]:
    """Return where arguments differ from the schema's, each as the op, the place, the argument and the difference."""
    schemas = read_schemas(root)
    wrong = [f"{op}: no schema in csrc/*/*.cpp" for op in function_names(root) if op not in schemas]
    wrong += _wrong_integers(schemas)
    wrong += _wrong_cpp(root, schemas)
    wrong += _wrong_entries(root, schemas)
    wrong += _wrong_fakes(root, schemas)
    for op in function_names(root):
        if op in schemas:
            wrong += _wrong_functions(root, op, schemas[op])
    return [*wrong, *_wrong_calls(root, schemas)]


def read_schemas(root: Path) -> dict[str, Schema]:
    """Return the schemas by op, those of gradients too, and of overloads as OP.OVERLOAD."""
    found = {}
    for path in sorted(root.glob("csrc/*/*.cpp")):
        for call in re.finditer(r'm\.def\(\s*((?:"[^"]*"\s*)+)\)', path.read_text()):
            text = "".join(re.findall(r'"([^"]*)"', call[1]))
            op, _, rest = text.partition("(")
            arguments, _, outputs = rest.partition(") -> ")
            own = [_schema_argument(each) for each in arguments.split(", ") if each != "*"]
            found[op] = Schema(text, own, outputs.count(",") + 1)
    return found


def _schema_argument(text: str) -> Argument:
    kind, _, rest = text.replace("(a!)", "").partition(" ")  # the mark of what the op writes to
    name, _, default = rest.partition("=")
    if kind == "ScalarType" and default:
        default = f"torch.{default}"
    return Argument(name, _annotation(kind), ast.unparse(ast.parse(default, mode="eval")) if default else "")


def _annotation(kind: str) -> str:
    if kind.endswith("?"):
        return f"{_annotation(kind[:-1])} | None"
    if listed := re.fullmatch(r"(\w+)\[\d*\]", kind):
        return f"Sequence[{_annotation(listed[1])}]"
    return ANNOTATIONS.get(kind, kind)


def differences(expected: Sequence[Argument], found: Sequence[Argument], of: str = "the schema") -> list[str]:
    """Return how arguments differ from those of another place: in names or else in order, in types and defaults."""
    names, own = [argument.name for argument in expected], [argument.name for argument in found]
    wrong = [f"{name}: missing, {of} has it" for name in names if name not in own]
    wrong += [f"{name}: {of} has none of that name" for name in own if name not in names]
    if not wrong:
        pairs = zip(names, own, strict=True)
        wrong = [f"{got}: expected {name} here, as in {of}" for name, got in pairs if name != got]
    by_name = {argument.name: argument for argument in expected}
    for argument in found:
        other = by_name.get(argument.name, argument)
        for what, wanted, got in (
            ("type", other.type, argument.type),
            ("default", other.default, argument.default),
        ):
            if wanted is not None and got is not None and wanted != got:
                wrong.append(f"{argument.name}: expected {what} {wanted or 'none'}, got {got or 'none'}")
    return wrong


def _wrong_integers(schemas: dict[str, Schema]) -> Iterator[str]:
    """Yield the integers that are constants to torch.compile, which would make a graph for each value."""
    for op, schema in schemas.items():
        for kind, name in re.findall(r"\b(int\b(?:\[\d*\])?\??) (\w+)", schema.text):
            yield f"{op}: schema: {name}: expected type {kind.replace('int', 'SymInt')}, got {kind}"


def _wrong_cpp(root: Path, schemas: dict[str, Schema]) -> Iterator[str]:
    """Yield what is wrong in declarations of ops, and in definitions of what is registered for them: the names."""
    for path in sorted([*root.glob("csrc/*/**/*.cpp"), *root.glob("csrc/*/*.h")]):
        text = path.read_text()
        registered = re.findall(r'm\.impl\("([\w.]+)", (\w+)\)', text)
        declarations = without_comments(re.sub(r"/\*\s*(\w+)\s*\*/", r"\1", text))  # names of what is unused stay
        declared = ((op, op.replace(".", "_")) for op in schemas)
        for op, function in dict.fromkeys([*declared, *registered]):
            found = list(_cpp_functions(declarations, function)) if function in declarations else []
            place = f"{op}: {path.relative_to(root)}: {function}"
            if op not in schemas:
                yield f"{place}: no op of that name is defined"
                continue
            if (op, function) in registered and not found:
                yield f"{place}: registered, but not defined here"
            for arguments in found:
                yield from (f"{place}: {each}" for each in differences(schemas[op].arguments, arguments))


def _cpp_functions(text: str, name: str) -> Iterator[list[Argument]]:
    """Yield the arguments of functions that begin in the first column; X_input is X before it is made ready."""
    for start in re.finditer(rf"^\w[^;{{}}()=#]*[\s&*>]{name}\(", text, re.MULTILINE):
        names = (re.search(r"(\w*)$", part) for part in _parts(text[start.end() :]))
        yield [Argument(found[1].removesuffix("_input") or "(no name)") for found in names if found]


def _parts(text: str) -> list[str]:
    """Return what commas separate before the parenthesis that closes."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "(<[{") - (letter in ")>]}")
        if depth < 0:
            break
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _wrong_entries(root: Path, schemas: dict[str, Schema]) -> Iterator[str]:
    """Yield what the extension module and its stub lack, and what is wrong in the stub."""
    entries = re.findall(r"DEEPCLUST_ENTRY\((\w+)\)", text_of(root / "csrc/module.cpp"))
    stub = _functions(root / "deepclust_ext/_C.pyi")
    yield from (f"{op}: csrc/module.cpp: no entry" for op in function_names(root) if op not in entries)
    yield from (f"{op}: deepclust_ext/_C.pyi: no function" for op in entries if op not in stub)
    for op in entries:
        place = f"{op}: deepclust_ext/_C.pyi"
        if op not in stub or op not in schemas:
            continue
        yield from (f"{place}: {each}" for each in differences(schemas[op].arguments, _arguments(stub[op])))
        yield from (f"{place}: {each.arg}: behind *, the entry has none" for each in stub[op].args.kwonlyargs)
        count, returns = schemas[op].num_outputs, ast.unparse(stub[op].returns or ast.Constant(None))
        wanted = f"tuple[{', '.join(['Tensor'] * count)}]" if count > 1 else "Tensor"
        if returns != wanted and (returns != "tuple[Tensor, ...]" or count == 1):
            yield f"{place}: expected to return {wanted}, got {returns}"


def _functions(path: Path) -> dict[str, ast.FunctionDef]:
    """Return the functions of a module by name, of one with overloads the last."""
    return {node.name: node for node in ast.parse(text_of(path)).body if isinstance(node, ast.FunctionDef)}


def _arguments(function: ast.FunctionDef) -> list[Argument]:
    given = function.args
    places = [*given.posonlyargs, *given.args]
    none: list[ast.expr | None] = [None]
    defaults = [*none * (len(places) - len(given.defaults)), *given.defaults, *given.kw_defaults]
    return [
        Argument(each.arg, *(ast.unparse(part) if part else "" for part in (each.annotation, default)))
        for each, default in zip([*places, *given.kwonlyargs], defaults, strict=True)
    ]


def entry_arguments(signature: str) -> list[Argument]:
    """Return the arguments in the first line of what pybind11 documents of a function, without their types."""
    (function,) = ast.parse(f"def {signature}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return [argument._replace(type=None) for argument in _arguments(function)]


def _wrong_fakes(root: Path, schemas: dict[str, Schema]) -> Iterator[str]:
    """Yield what is wrong in the fake kernels: names, order and defaults."""
    for path in sorted(root.glob("deepclust_ext/ops/*.py")):
        functions = _functions(path)
        for function, call in _calls(path):
            if function != "torch.library.register_fake" or not isinstance(call.args[0], ast.Constant):
                continue
            op, fake = str(call.args[0].value).removeprefix("deepclust_ext::"), ast.unparse(call.args[1])
            place = f"{op}: {path.relative_to(root)}: {fake}"
            if op not in schemas or fake not in functions:
                yield f"{place}: {'no function of this module' if op in schemas else 'no op of that name is defined'}"
                continue
            found = [argument._replace(type=None) for argument in _arguments(functions[fake])]
            yield from (f"{place}: {each}" for each in differences(schemas[op].arguments, found))


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls in a module, each with what is called."""
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _home(root: Path, room: str, op: str) -> str:
    """Return the module of a room that defines a function."""
    return f"deepclust_ext/{room}/{imported_from(root / f'deepclust_ext/{room}/__init__.py').get(op, op)}.py"


def _wrong_functions(root: Path, op: str, schema: Schema) -> Iterator[str]:
    """Yield what is wrong in the public function, compared with the schema, and in the reference, with the function."""
    home, reference_home = (_home(root, room, op) for room in ("ops", "reference"))
    public, reference = (_functions(root / path).get(op) for path in (home, reference_home))
    if public is None:
        yield f"{op}: {home}: no function"
        return
    shared = [
        argument._replace(type=WIDER_TYPES.get((op, argument.name), (argument.type,))[0])
        for argument in schema.arguments
        if (op, argument.name) not in SCHEMA_ALONE
    ]
    own = [argument for argument in _arguments(public) if (op, argument.name) not in FUNCTION_ALONE]
    yield from (f"{op}: {home}: {each}" for each in differences(shared, own))
    if reference is None:
        yield f"{op}: {reference_home}: no function"
        return
    found = [argument._replace(type=None) for argument in _arguments(reference)]
    wrong = differences(_arguments(public), found, "the public function")
    yield from (f"{op}: {reference_home}: {each}" for each in wrong)


def _wrong_calls(root: Path, schemas: dict[str, Schema]) -> Iterator[str]:
    """Yield what is wrong in calls of ops and references, and which of them the module of a public function lacks.

    Calls in ops/ give all arguments but those of the schema alone. Elsewhere what has a default may be left out.
    """
    made = set()
    for path in sorted(root.glob("deepclust_ext/**/*.py")):
        where = str(path.relative_to(root))
        for function, call in _calls(path):
            what, op, given = _callee(function, call)
            if op not in schemas:
                continue
            made.add((op, what, where))
            arguments = schemas[op].arguments
            optional = [each.name for each in arguments if each.default]
            if path.parent.name == "ops":
                optional = [name for name in optional if (op, name) in SCHEMA_ALONE]
            if what == "reference":
                reference = _functions(root / _home(root, "reference", op)).get(op)
                arguments = _arguments(reference) if reference else []
            wrong = _wrong_call([each.name for each in arguments], optional, given, call.keywords)
            yield from (f"{op}: {where}, line {call.lineno}: {each}" for each in wrong)
    for op in function_names(root):
        home = _home(root, "ops", op)
        missing = (what for what in ("op", "reference") if (op, what, home) not in made)
        yield from (f"{op}: {home}: no call of the {what}" for what in missing)


def _callee(function: str, call: ast.Call) -> tuple[str, str, list[ast.expr]]:
    """Return whether a call is of an op or of a reference, of which, and what it gives by position."""
    if function == "call" and call.args and isinstance(call.args[0], ast.Constant):
        return "op", str(call.args[0].value), call.args[1:]
    if found := re.fullmatch(r"torch\.ops\.deepclust_ext\.(\w+(\.\w+)?)", function):
        return "op", found[1].removesuffix(".default"), call.args
    if found := re.fullmatch(r"reference\.(\w+)", function):
        return "reference", found[1], call.args
    return "", "", []


def _wrong_call(
    names: Sequence[str], optional: Sequence[str], arguments: Sequence[ast.expr], keywords: Sequence[ast.keyword]
) -> Iterator[str]:
    """Yield the arguments that a call leaves out, and those for which it gives another of the op's."""
    given = dict(zip(names, arguments, strict=False)) | {each.arg or "**": each.value for each in keywords}
    yield from (f"{name}: left out of the call" for name in names if name not in given and name not in optional)
    for name, value in given.items():
        if isinstance(value, ast.Name) and value.id != name and value.id in names:
            yield f"{name}: the call gives {value.id}"
