"""The one loop over all images of a data set."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from deepclust_ext.distributed import gather_rows, num_ranks, rank_of
from deepclust_ext.inference.images import IndexedImages, LabelledImages, moved, numbered, takes_any_size
from deepclust_ext.inference.loader import Loader
from deepclust_ext.inference.memory import reused_memory
from deepclust_ext.methods.base import ClusterHeadMethod, ClusteringMethod
from deepclust_ext.ops._checks import check_integer, check_type

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group

# From a batch of images (B, C, H, W), of different sizes a list of (C, H, W), to another (B, C, H', W').
View = Callable[[Any], Tensor]


@reused_memory()
def map_images(
    function: Callable[[Tensor], tuple[Tensor, ...]],
    data: Dataset[Any],
    *,
    test_view: View | None = None,
    batch_size: int = 512,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    with_labels: bool = False,
    progress: str = "",
    gather_distributed: bool = False,
    process_group: "Group" = None,
) -> tuple[Tensor, ...]:
    """Return the results of a function for all images of a data set, in its order.

    Args:
        function: Maps a batch of images (B, C, H, W) to a tuple of tensors (B, ...).
        data: Map-style, of images or of tuples that begin with one, see :class:`IndexedImages`.
        test_view: View of every batch, on the device; None for unchanged images. Images may differ in size if the view
            takes lists of them and has a true attribute ``any_size``, as all views of photographs here do.
        batch_size: Images at a time.
        num_workers: Processes that load images.
        device: Where the function computes.
        with_labels: Whether to return the class of each image too, the second entry of its item, as the last tensor
            (N,), on the CPU; names are numbered in alphabetical order.
        progress: Title of a bar on a terminal; "" for no bar.
        gather_distributed: Whether each rank takes some of the batches, and all get the results; not with labels.
        process_group: The ranks; None for all.

    Returns:
        One tensor (N, ...) for each of the function's.

    Raises:
        TypeError: If the data are not map-style, or an item has no image, or no class where it needs one, or a number
            is no integer.
        ValueError: If there is no image, one cannot be read, those of a batch differ in shape or dtype, or a pixel is
            not finite, or a number is out of range.
    """
    batch_size = check_integer(batch_size, "batch_size", 1)
    num_workers = check_integer(num_workers, "num_workers", 0)
    if test_view is not None:
        check_type(test_view, "test_view", Callable, "a function of a batch or None")
    source = (LabelledImages if with_labels else IndexedImages)(data, any_size=takes_any_size(test_view))
    if not len(source):
        raise ValueError("data: expected at least one image, got none")
    ranks, rank = (num_ranks(process_group), rank_of(process_group)) if gather_distributed else (1, 0)
    if with_labels and ranks > 1:
        raise ValueError("with_labels: expected False where ranks share the images, got True")
    results: list[Tensor] = []  # filled batch by batch: of a million images they are not kept twice
    labels: list[int | str] = []
    places = list(range(len(source)))
    order = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
    # Whole batches, in their order: each has the result that it has on one rank.
    first, end = len(order) * rank // ranks, len(order) * (rank + 1) // ranks
    own = order[first:end] or order[:1]  # of what there is too little for all ranks, the kind is still wanted
    done = start = own[0][0]
    total = own[-1][-1] + 1 - start
    batches = Loader(source, num_workers=num_workers, device=device).batches(own)
    # disable=None: a bar on a terminal, and nothing elsewhere.
    bar = tqdm(batches, desc=progress, total=len(own), unit="batch", disable=None if progress and not rank else True)
    for images, numbers in bar:
        begin = done - start
        for place, image in enumerate(images if images[0].is_floating_point() else ()):
            if not image.isfinite().all():
                raise ValueError(f"{source.name(done + place)}: expected finite pixels, got NaN or infinity")
        done += len(images)
        if with_labels:
            labels += numbers
        given: Any = moved(images, device)
        tensors = function(given if test_view is None else test_view(given))
        results = results or [tensor.new_empty(total, *tensor.shape[1:]) for tensor in tensors]
        for result, tensor in zip(results, tensors, strict=True):
            result[begin : done - start] = tensor
    if ranks > 1:
        results = [gather_rows(rows if first < end else rows[:0], process_group, False) for rows in results]
    return (*results, *([numbered(labels)] if with_labels else []))


def embed(
    method: ClusteringMethod,
    data: Dataset[Any],
    *,
    test_view: View | None = None,
    batch_size: int = 512,
    num_workers: int = 0,
    gather_distributed: bool = False,
    process_group: "Group" = None,
) -> Tensor:
    """Return a method's rows (N, D) for the images of a data set, on the method's device; see :func:`map_images`."""
    (rows,) = map_images(
        lambda images: (method.embed(images),),
        data,
        test_view=test_view,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device_of(method),
        gather_distributed=gather_distributed,
        process_group=process_group,
    )
    return rows


def assign(
    method: ClusterHeadMethod,
    data: Dataset[Any],
    *,
    test_view: View | None = None,
    batch_size: int = 512,
    num_workers: int = 0,
    gather_distributed: bool = False,
    process_group: "Group" = None,
) -> Tensor:
    """Return the shares (N, K) of the clusters for the images of a data set, on the method's device."""
    (shares,) = map_images(
        lambda images: (method.assign(images),),
        data,
        test_view=test_view,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device_of(method),
        gather_distributed=gather_distributed,
        process_group=process_group,
    )
    return shares


def device_of(method: ClusteringMethod) -> torch.device:
    """Return where a method's weights are."""
    return next(method.parameters()).device
