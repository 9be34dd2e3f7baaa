"""Processes that begin with torch and the tests' tools imported: forks of one that did it, since that takes seconds."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Waits for a line of JSON, runs its code in a fork as `python -c` would, and answers with the exit status.
TEMPLATE = """
import json, os, sys, traceback
import pytest
import torch
import torch._dynamo

plain = list(sys.path)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        sys.argv[1:] = asked["arguments"]
        sys.path[:] = ["", *filter(None, asked["env"].get("PYTHONPATH", "").split(os.pathsep)), *plain]
        for number, path in ((1, asked["out"]), (2, asked["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        status = 0
        try:
            exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
        except SystemExit as end:
            status = end.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Template:
    """Runs code in processes that have imported torch already, and nothing of this package.

    Args:
        environment: Of the process that imports torch.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        own = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", TEMPLATE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=own,
        )

    def close(self) -> None:
        """End the process that imported torch."""
        self._process.communicate()

    def run(
        self, code: str, cwd: Path, env: Mapping[str, str], *arguments: object
    ) -> "subprocess.CompletedProcess[str]":
        """Run code in a folder and an environment, with what PYTHONPATH names on the path, and return what it said."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            asked = {"code": code, "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
            asked["arguments"] = [str(argument) for argument in arguments]
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(["python", "-c", code], status, out.read_text(), err.read_text())


@functools.cache
def template() -> Template:
    """Return the template that this process's tests share, in whose environment it began."""
    made = Template(os.environ)
    atexit.register(made.close)
    return made


def run_python(
    code: str, *arguments: object, cwd: Path = ROOT, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run code as `python -c` would in a new process, with the package of this checkout on the path."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return template().run(code, cwd, env, *arguments)


def run_module(name: str, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a module of this checkout as `python -m` would in a new process."""
    code = f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return run_python(code, *arguments, cwd=ROOT, **environment)
