"""The tables of floors and predictions of all ops on CUDA, by the ops that they are of."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.floors import Card


def find_tables() -> dict[str, Callable[[Card], str]]:
    """Return what the modules beside this one call floor_table, by the OPS that they are of, in their order."""
    names = sorted({path.stem for path in Path(__file__).parent.glob("[!_]*.py")} - {"tables"})
    modules = [importlib.import_module(f"benchmarks.floors.{name}") for name in names]
    tables = {module.OPS: module.floor_table for module in modules if hasattr(module, "floor_table")}
    return dict(sorted(tables.items()))


FLOOR_TABLES: Mapping[str, Callable[[Card], str]] = find_tables()
