"""A default recipe for images without a tuned one, from a short table of kinds of images (docs/defaults.md)."""

import math
from dataclasses import replace
from typing import Any

import torch

from deepclust_ext.backbones.small import SIDES
from deepclust_ext.data import Images
from deepclust_ext.methods import OptimizerSettings
from deepclust_ext.methods.boost import NO_START
from deepclust_ext.ops._checks import check_integer, check_type, counted
from deepclust_ext.recipes.files import method_class
from deepclust_ext.recipes.look import MARGIN, PLAIN, Look, look
from deepclust_ext.recipes.schema import Backbone, Data, Recipe
from deepclust_ext.training import KMeansSettings, LearningRate, Phase
from deepclust_ext.training.phases import scaled

SCANS, PHOTOGRAPHS, TEXTURES = "scans", "photographs", "textures"

#: CPU seconds of one Zen 3 core that a run without a GPU may take for 3,000 images or fewer.
SECONDS = 1500.0
FEWEST_EPOCHS = 20

#: For photographs and textures with a GPU. The transformer, of 224 pixels, is PICI's.
RESNET, VIT, EPOCHS_OF_LARGE = "resnet18", "vit", 300
BATCHES_OF_LARGE = {RESNET: 256, VIT: 96}
#: The small transformer has patches of so many pixels, and of a smaller image too few of them.
PATCH, SMALLEST_SIDE = 8, 32

COUNT_OF_SCHEDULES = 2000
_INSTANCE = Phase("instance", 30, {"images": "instance"})
_LABELS = Phase("labels", 10, {"images": "labels"}, "once")
#: For so many images: batch and phases. SACC's head splits large clusters on its own, so k-means has the last word.
#: Prototypes of HaDis keep what rows have merged before the warm-up is over.
SCHEDULES = {
    "HaDis": (64, (Phase("warmup", 30, {"images": "warmup"}), Phase("main", 70, {"images": "all"}, 1))),
    "SACC": (
        256,
        (_INSTANCE, _LABELS, Phase("main", 60, {"images": "all"}), replace(_LABELS, name="last", epochs=20)),
    ),
    "PICI": (
        64,
        (Phase("pisd", 6, {"images": "reconstruction"}), Phase("picd", 90), replace(_LABELS, name="cli")),
    ),
    "CLC": (128, (_INSTANCE, _LABELS, Phase("main", 80, {"images": "all"}))),
}
#: On scans CLC's head splits large clusters as well, where its rows tell none.
CLC_OF_SCANS = (_INSTANCE, replace(_LABELS, epochs=30), Phase("main", 60, {"images": "all"}))


def default_recipe(
    images: Images, num_clusters: int, *, method: str | None = None, device: torch.device | str | None = None
) -> tuple[Recipe, list[str]]:
    """Return a recipe chosen by the images, and the reasons, a line for each choice.

    The choice depends only on a sample of pixels, on sizes, on the number of images and on the device; labels are not
    read.

    Args:
        images: The images to cluster. They may differ in size.
        num_clusters: K.
        method: "HaDis", "SACC", "PICI" or "CLC"; None for HaDis.
        device: Where to train; None for a GPU if there is one.

    Returns:
        The complete recipe, and the reasons; the last two are for batch and epochs.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If there are fewer than two images, fewer images than clusters or less than one cluster, or the
            method is unknown.
    """
    check_type(images, "images", Images, "images of deepclust_ext.data.load_images")
    count = len(images)
    if count < 2:
        raise ValueError(f"images: expected at least 2 images, got {count}")
    num_clusters = check_integer(num_clusters, "num_clusters", 1)
    if num_clusters > count:
        raise ValueError(f"num_clusters: expected 1 to {count}, the number of images, got {num_clusters}")
    method = "HaDis" if method is None else method
    method_class(method, "default_recipe")
    if method not in SCHEDULES:
        features = "rows of features: a file of them, or images with --backbone"
        takes = f"a run, {NO_START}" if method == "Boost" else features
        expected = ", ".join(SCHEDULES)
        raise ValueError(f"method: expected one of {expected} for images, got {method!r}, which takes {takes}")
    on_gpu = torch.device(device).type == "cuda" if device is not None else torch.cuda.is_available()
    seen = look(images)
    kind, reasons = _kind(seen)
    size = _canvas(method, kind, seen, on_gpu)
    backbone = _backbone(method, kind, size, on_gpu)
    large = backbone.name in BATCHES_OF_LARGE
    usual = BATCHES_OF_LARGE[backbone.name] if large else SCHEDULES[method][0]
    batch_size = _batch_size(usual, count, num_clusters)
    epochs, time = _epochs(method, large, count, size, on_gpu)
    sides = " x ".join(map(str, images.image_size)) + " pixels" if images.image_size else "different sizes"
    color = "gray" if seen.gray else "colored" if images.channels == 3 else f"{images.channels}-band"
    reasons = [
        f"{count:,} {color} images of {sides}",
        *reasons,
        f"the network {backbone.name} on {size} x {size} pixels" + _network_reason(kind, on_gpu),
        f"batches of {batch_size}" + ("" if batch_size == usual else _batch_reason(count, num_clusters)),
        time,
    ]
    recipe = Recipe(
        method=method,
        data=Data("images", "all", count, num_clusters, size, images.channels),
        backbone=backbone,
        views=_views(method, kind, size, resized=images.image_size != (size, size)),
        test_view={"name": "resize", "size": size, "interpolation": "bilinear"},
        batch_size=batch_size,
        phases=scaled(CLC_OF_SCANS if (method, kind) == ("CLC", SCANS) else SCHEDULES[method][1], epochs),
        model=_model(method, kind, large, count // batch_size, batch_size),
        optimizer=_optimizer(method, large),
        learning_rate=_learning_rate(method, large),
        kmeans=KMeansSettings(n_init={"HaDis": 10, "PICI": 100}.get(method, 20)),
        name=f"{method.lower()}-{kind}",
    )
    return recipe, reasons


def _kind(seen: Look) -> tuple[str, list[str]]:
    if seen.gray and seen.plain >= PLAIN:
        return SCANS, [
            f"gray on a plain ground ({seen.plain:.0%} of the pixels in the median): scans or symbols, "
            "so affine and gamma views, and never a flip"
        ]
    if seen.up is not None and seen.up < MARGIN:
        return TEXTURES, [
            f"neighbors are as often turned as upright (by {seen.up:+.2f}): textures or images from above, "
            "so turns by 90 degrees too"
        ]
    return PHOTOGRAPHS, ["photographs: crops, flips and jitter"]


def _canvas(method: str, kind: str, seen: Look, on_gpu: bool) -> int:
    if kind == SCANS:
        side = min(max(*seen.sides, SIDES[0]), SIDES[1])
        return max(math.ceil(side / PATCH) * PATCH, SMALLEST_SIDE) if method == "PICI" else side
    side = min(seen.sides)
    if on_gpu:
        return 32 if side < 48 else 64 if side < 80 else 96 if side < 160 else 224
    return 32 if side < 48 else 64


def _backbone(method: str, kind: str, size: int, on_gpu: bool) -> Backbone:
    if method == "PICI":
        return Backbone(VIT if size > 96 else "vit-small")
    if kind == SCANS or not on_gpu:
        # Heads learn as much with a linear layer in half of the time, with which the rows of HaDis merge classes.
        return Backbone("small" if method == "HaDis" else "small-linear")
    return Backbone(RESNET, "cifar" if size <= 96 else "imagenet")


def _network_reason(kind: str, on_gpu: bool) -> str:
    return "" if kind == SCANS or on_gpu else ", because a ResNet takes minutes for an epoch without a GPU"


def _batch_reason(count: int, num_clusters: int) -> str:
    return f", for {count:,} images and {num_clusters} clusters"


def _batch_size(usual: int, count: int, num_clusters: int) -> int:
    """Return the usual batch; less for few images, but at least four images for each cluster if there are enough."""
    steps = 7  # an epoch at least
    fitting = min(1 << int(math.log2(max(count // steps, 8))), max(count // 2, 2))
    enough = 4 * num_clusters
    return max(min(usual, fitting), enough if enough < count else 2)


def _epochs(method: str, large: bool, count: int, size: int, on_gpu: bool) -> tuple[int, str]:
    """Return for how many epochs to train, and why."""
    usual = EPOCHS_OF_LARGE if large else sum(phase.epochs for phase in SCHEDULES[method][1])
    # Steps decide: as many as for 2,000 images, but each image at most four times as often and half as often at least.
    wanted = round(usual * min(max(COUNT_OF_SCHEDULES / count, 0.5), 4.0))
    if on_gpu:
        return wanted, counted(wanted, "epoch")
    epoch = seconds_per_image(size) * count
    epochs = min(wanted, max(int(SECONDS / epoch), FEWEST_EPOCHS))
    shorter = "" if epochs == wanted else f", of {wanted} that a GPU would have time for"
    minutes = counted(math.ceil(epochs * epoch / 60), "minute")
    return epochs, f"{counted(epochs, 'epoch')}{shorter}: about {minutes} of one core without a GPU"


def seconds_per_image(size: int) -> float:
    """Return the CPU seconds of an epoch for each image of this side, with the small network, for all methods.

    This is an upper bound: it gives 2.0 ms for 28 pixels, where one thread of a busy Zen 3 core took 1.7 ms for HaDis,
    0.9 for SACC and 1.0 for CLC.
    """
    return 1.2e-3 + 1.0e-6 * size**2


def _views(method: str, kind: str, size: int, *, resized: bool) -> tuple[dict[str, Any], ...]:
    first = [{"name": "resize", "size": size, "interpolation": "bilinear"}] if resized else []

    def scan(degrees: float, shear: float, scale: float, stretch: float, shift: float) -> dict[str, Any]:
        affine = {"degrees": degrees, "shear": shear, "scale": scale, "stretch": stretch, "shift": shift}
        return {"name": "sequential", "views": [*first, {"name": "affine"} | affine, {"name": "gamma", "gamma": 0.7}]}

    if kind == SCANS:
        plain = weak = scan(15.0, 0.15, 0.15, 0.15, 0.09375)
        strong = scan(25.0, 0.25, 0.25, 0.35, 0.16)
    else:
        turn = [{"name": "turn"}] if kind == TEXTURES else []
        weak = {"name": "sequential", "views": [{"name": "contrastive", "size": size, "scale": [0.2, 1.0]}, *turn]}
        plain = {"name": "sequential", "views": [{"name": "resize", "size": size, "interpolation": "bilinear"}, *turn]}
        strong_crop = {"name": "strong", "size": size, "scale": [0.2, 1.0], "mean": None, "std": None}
        strong = {"name": "sequential", "views": [strong_crop, *turn]}
    if method == "PICI":  # the weak one as the paper has it, where turns and strokes are not what tells scans apart
        return strong if kind == SCANS else weak, plain
    return (weak, weak, strong) if method == "SACC" else (weak, weak)


def _model(method: str, kind: str, large: bool, steps: int, batch_size: int) -> dict[str, Any]:
    """Return the arguments of a method by the number of steps of an epoch: averages must not lag behind by epochs.

    A large network has the heads of the papers, a small one has smaller heads.
    """
    if method == "PICI":
        decoder = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
        return {} if large else {"hidden_share": 0.25} | decoder
    widths = {} if large else {"hidden_dim": 256, "embedding_dim": 128 if method == "SACC" else 64}
    if method == "HaDis":
        weight = {} if large else {"prototype_weight": 1.0}
        return widths | weight | {"momentum": round(min(max(1 - 0.3 / steps, 0.9), 0.996), 4)}
    if method == "SACC":
        return widths | ({"entropy_weight": 2.0} if kind == SCANS else {})
    # The keys of four steps: a longer queue would hold most images themselves, as seen by an older network.
    momentum = round(min(max(1 - 3 / steps, 0.5), 0.999), 4)
    temperature = {} if large else {"temperature": 0.5}
    return widths | temperature | {"queue_size": 8 * batch_size, "momentum": momentum, "epsilon": 0.9}


def _optimizer(method: str, large: bool) -> OptimizerSettings:
    if method == "HaDis":
        return OptimizerSettings("sgd", lr=0.05, lr_batch_size=256, momentum=0.9, weight_decay=5e-4)
    if method == "PICI":
        return OptimizerSettings("adam", lr=1e-4 if large else 2e-3)
    return OptimizerSettings("adam", lr=3e-4 if large and method == "SACC" else 1e-3)


def _learning_rate(method: str, large: bool) -> LearningRate:
    # SACC's own is constant, by which the head of a small network went away from a good partition (docs/defaults.md).
    if large and method in ("SACC", "PICI"):
        return LearningRate()
    return LearningRate("warmup_cosine", warmup=4 if method == "PICI" else 2)
