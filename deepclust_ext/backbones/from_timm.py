"""timm's networks without their last layer, with weights from a file. Needs timm, the extra `timm`."""

import difflib
import inspect
import sys
from typing import Any

from torch import Tensor, nn


def timm_network(name: str, image_size: int | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network of timm with random weights from (B, 3, S, S) to (B, D), and what its weights were trained with.

    Nothing is downloaded.

    Args:
        name: Name of the network, with or without the tag of its weights.
        image_size: S; None for the size that its weights were trained with.

    Returns:
        The network, and size, mean, std and interpolation from timm's data config; the size is ``image_size`` if given.

    Raises:
        ImportError: If timm is missing or does not fit torch.
        ValueError: If timm has no such network, or it does not take this size.
    """
    try:
        import timm
    except (ImportError, OSError, RuntimeError) as error:  # the latter two for a torchvision of another torch
        message = f"backbone: timm:{name} needs timm, which cannot be imported ({error})"
        raise ImportError(f"{message}; pip install 'deepclust_ext[timm]'") from error
    if not timm.is_model(name):  # before timm looks elsewhere for it
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean timm:{near[0]}?" if near else ""
        raise ValueError(f"backbone: expected a network of timm {timm.__version__}, got {name!r}{hint}")
    # Transformers have positions of one size, the others take any.
    settings = {"img_size": image_size} if timm.get_pretrained_cfg_value(name, "fixed_input_size") else {}
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"image_size: expected one that timm:{name} takes, got {image_size}: {error}") from error
    config = timm.data.resolve_model_data_config(network)
    seen = {name: config[name] for name in ("mean", "std", "interpolation")}
    return network, {**seen, "size": image_size or config["input_size"][-1]}


def without_classifier(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return weights as a network of :func:`timm_network` names them, without those of its last layer.

    timm renames what authors have published, and resamples positions to another size.

    Raises:
        ValueError: If timm cannot make weights of this network of them.
    """
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        takes_network = len(inspect.signature(convert).parameters) > 1
        try:
            state = convert(state, network) if takes_network else convert(state)
        except Exception as error:  # of whatever kind, where the weights are another network's
            raise ValueError(f"weights of {type(network).__name__}, got others: {error!r}") from error
    config: Any = network.pretrained_cfg
    last = config.get("classifier") or ()
    names = {f"{layer}.{part}" for layer in ([last] if isinstance(last, str) else last) for part in ("weight", "bias")}
    return {key: value for key, value in state.items() if key not in names}
