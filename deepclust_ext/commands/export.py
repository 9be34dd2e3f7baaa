"""Write the trained network of a run as one file that works without this package: images in, rows and shares out.

onnx is for onnxruntime and other readers of ONNX, torch is for torch.export.load, and safetensors holds the weights
alone. The run's normalization is part of the network; resizing is not. The file is compared with the run before it is
kept.

Example:
  deepclust-ext export runs/photos --format onnx
  deepclust-ext export runs/photos --out photos.pt2 --json
"""

import argparse
from pathlib import Path

from deepclust_ext.commands._arguments import add_run_folder
from deepclust_ext.commands._output import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    add_run_folder(parser)
    parser.add_argument("--format", choices=("onnx", "safetensors", "torch"), help="default: as --out ends, else onnx")
    parser.add_argument("--out", type=Path, help="the file (default: network.onnx, .safetensors or .pt2 here)")
    add_json(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    """Write the file, print what goes in and out, and return the exit status 0."""
    import json

    from deepclust_ext.runs import open_run
    from deepclust_ext.runs.export import FORMATS, check_target, describe, export

    endings = {known.suffix: name for name, known in FORMATS.items()}
    kind = args.format or endings.get(args.out.suffix if args.out else "", "onnx")
    path = args.out or Path(f"network{FORMATS[kind].suffix}")
    check_target(path, kind, overwrite=args.overwrite)  # before the run is opened
    facts = export(open_run(args.run_folder), path, format=kind, overwrite=args.overwrite)
    print(json.dumps(facts, indent=2) if args.json else describe(facts))
    return 0
