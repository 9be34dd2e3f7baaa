"""How long a run will take, before its first epoch."""

import copy
import time

import torch

from deepclust_ext.data.views import seen_by
from deepclust_ext.inference import IndexedImages, device_of, moved, takes_any_size
from deepclust_ext.training import Trainer


def seconds_of_a_step(trainer: Trainer) -> float:
    """Return how long a step takes: the faster of two on a copy of the method, with loading and views.

    Ranks take them together. Weights and random numbers of the run stay as they are.

    Raises:
        ValueError: If an image cannot be read.
    """
    images = IndexedImages(trainer.data["images"], any_size=takes_any_size(*trainer.views))
    method = copy.deepcopy(trainer.method).train()
    device, size = device_of(method), trainer.config.batch_size
    part = trainer.ranks.part(size)
    terms = trainer.config.phases[-1].passes.get("images")
    times = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else ()):
        for _ in range(2):
            start = time.perf_counter()
            batch, places = images.collate(images.__getitems__(list(range(size))[part]))
            given = moved(batch, device)
            views = [seen_by(view, given, places) for view in trainer.views]
            labels = torch.arange(size, device=device)[part] % method.num_clusters
            with torch.autocast(device.type, torch.bfloat16, enabled=trainer.config.precision == "bf16"):
                loss, _ = method.training_step(views, labels, places, terms=terms)
            loss.backward()
            float(loss.detach())  # waits for the device
            times.append(time.perf_counter() - start)
    return min(times)
