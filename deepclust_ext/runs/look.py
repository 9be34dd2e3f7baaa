"""Describes a folder of images or a file of features, for users and programs."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from deepclust_ext.data import Features
from deepclust_ext.data.words import sizes_in_words
from deepclust_ext.ops._checks import counted
from deepclust_ext.runs.source import Source, check_root, hint_of_labels

#: Kinds of images and reasons that are listed for people at most.
LISTED = 10


def describe(source: Source) -> dict[str, Any]:
    """Return a description of images, JSON-serializable.

    It has ``images``, ``channels``, the ``dtype`` that methods see, the stored ``kinds`` (height, width, bands, type
    and count), ``classes`` with their sizes if there are labels, ``skipped`` with reasons, ``notes`` and
    ``fingerprint``. For features it also has their number, ``features``.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If there is no image.
    """
    check_root(source)
    images: Any = source.open(cache="none") if source.root or not source.is_named else source.open()
    if not hasattr(images, "kinds"):
        raise ValueError(f"data: expected a folder or a file, got {source.name}, which lies in none")
    kinds = [
        dict(zip(("height", "width", "bands", "type"), kind, strict=True), images=count)
        for kind, count in images.kinds.most_common()
    ]
    sizes = None if images.labels is None else images.labels.bincount().tolist()
    return {
        **({"features": images.channels} if isinstance(images, Features) else {}),
        "images": len(images),
        "channels": images.channels,
        "dtype": str(images.dtype).removeprefix("torch."),
        "kinds": kinds,
        "classes": None if sizes is None else dict(zip(images.classes, sizes, strict=True)),
        "skipped": [{"path": name, "reason": reason} for name, reason in images.skipped],
        "notes": [*images.notes[:1], *hint_of_labels(source, images), *images.notes[1:]],
        "fingerprint": images.fingerprint,
    }


def format_description(found: Mapping[str, Any]) -> str:
    """Return the description of :func:`describe` as text."""
    channels = counted(found["channels"], "channel")
    lines = [f"{counted(found['images'], 'image')}, seen with {channels} of {found['dtype']}"]
    if "features" in found:  # of which the first note says all this
        lines = []
    for kind in found["kinds"][:LISTED] if "features" not in found else ():
        size = f"{kind['width']} x {kind['height']}"
        lines.append(f"{kind['images']:8} of {size:>11} pixels, {counted(kind['bands'], 'band')}, {kind['type']}")
    if len(found["kinds"]) > LISTED:
        rest = sum(kind["images"] for kind in found["kinds"][LISTED:])
        lines.append(f"{rest:8} of {len(found['kinds']) - LISTED} other kinds")
    if found["classes"] is not None:
        sizes = sizes_in_words(found["classes"].values(), "row" if "features" in found else "image")
        lines.append(f"{counted(len(found['classes']), 'class')} of {sizes}")
    # The first note of images is about how they are kept. The last one is about what is skipped, as are the next lines.
    notes = found["notes"] if "features" in found else found["notes"][1:]
    lines += notes[:-1] if found["skipped"] else notes
    reasons = Counter(entry["reason"] for entry in found["skipped"])
    for reason, count in reasons.most_common(LISTED):
        first = next(entry["path"] for entry in found["skipped"] if entry["reason"] == reason)
        lines.append(f"{count:8} skipped, such as {first}: {reason}")
    return "\n".join(lines)
