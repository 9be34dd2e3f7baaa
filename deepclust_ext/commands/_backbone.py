"""The frozen network that embeds images, as `train` and `embed` take it."""

import argparse
from typing import TYPE_CHECKING

from deepclust_ext.commands._arguments import at_least
from deepclust_ext.commands._given import require

if TYPE_CHECKING:
    from deepclust_ext.inference.pretrained import Pretrained

#: Options that say more of the network.
_MORE = ("weights", "image_size", "mean", "std")


def add_backbone(parser: argparse.ArgumentParser) -> None:
    """Add the options of the network, its weights, and its images' size and normalization."""
    group = parser.add_argument_group("frozen network", "embeds each image once, see docs/features.md; no download")
    group.add_argument("--backbone", metavar="NETWORK", help="pretrained: timm:NAME or module:function")
    group.add_argument("--weights", metavar="FILE", help="of NETWORK or of a run's: .pth, .pt or .safetensors")
    group.add_argument(
        "--image-size", type=at_least(1), metavar="S", help="images become S x S (default: timm's, else 224)"
    )
    group.add_argument("--mean", type=numbers, metavar="R,G,B", help="of channels (default: timm's, else ImageNet's)")
    group.add_argument("--std", type=numbers, metavar="R,G,B", help="of channels, in the same way")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add where the weights of a run's frozen network lie now; only `train --resume` records it."""
    moved = "of the run's frozen network, if the file has moved; `train --resume` records the new place"
    parser.add_argument("--weights", metavar="FILE", help=moved)


def numbers(text: str) -> tuple[float, ...]:
    """Read numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as 0.5,0.5,0.5, got {text!r}") from error


def backbone(args: argparse.Namespace, of_run: bool = False) -> "Pretrained | None":
    """Return the network that was asked for, if one was.

    Args:
        args: The parsed options.
        of_run: Whether ``--weights`` may also be given for the network of a run.

    Raises:
        argparse.ArgumentError: If something is said of a network, and not which one.
    """
    from deepclust_ext.inference.pretrained import Pretrained

    require((args.mean is None) == (args.std is None), "--mean, --std: expected both or neither, got one")
    if args.backbone is not None:
        return Pretrained(args.backbone, args.weights, args.image_size, args.mean, args.std)
    for name in _MORE:
        value = None if of_run and name == "weights" else getattr(args, name)
        got = ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else value
        require(value is None, f"--{name.replace('_', '-')}: expected none without --backbone, got {got}")
    return None
