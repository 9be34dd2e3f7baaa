#!/usr/bin/env bash
# torch 2.14.1: torch.distributed.nn, which torch._dynamo imports and so the first torch.compile or
# torch.compiler.disable, takes the group of all ranks as the default of its functions' arguments when it is imported.
# Imported while there is a group, it keeps that group for good: destroy_process_group() then ends none of gloo's threads.
# Python ends with them at work, and one that frees a tensor in that moment aborts the process ("terminate called
# without an active exception"): of 75 trainings of two ranks on a busy machine one ended so.
# Seen: threads of gloo after destroy_process_group(): 0 with the import before the group, 3 with it after.
# Exits 0 while that is so, and 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cat >"$folder/threads.py" <<'PYTHON'
import importlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist

when, store = sys.argv[1:]
if when == "before":
    importlib.import_module("torch.distributed.nn")
dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
dist.all_reduce(torch.ones(2))
if when == "after":
    importlib.import_module("torch.distributed.nn")
dist.destroy_process_group()
left = sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))
print(torch.__version__, "imported", when, "the group: threads of gloo left:", left)
raise SystemExit((left > 0) != (when == "after"))
PYTHON
for when in before after; do
  "$folder/venv/bin/python" "$folder/threads.py" "$when" "$folder/store-$when"
done
