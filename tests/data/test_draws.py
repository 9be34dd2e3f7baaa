"""Random numbers by image: parts of a batch get the views that they have in the whole."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepclust_ext.data import VIEWS, NeighborView, PerImage, make_view
from deepclust_ext.data.draws import drawn, draws_by_image, part_of_batch
from deepclust_ext.data.views import seen_by

#: What views need beside their names.
SETTINGS: dict[str, dict[str, Any]] = {
    "contrastive": {"size": 8, "blur_p": 0.5},
    "strong": {"size": 8},
    "byol": {"size": 8},
    "resize": {"size": 8},
    "sequential": {"views": [{"name": "affine"}, {"name": "turn"}, {"name": "noise"}]},
}


@pytest.mark.parametrize("name", VIEWS)
def test_images_have_the_same_views_in_parts_of_a_batch_as_in_the_whole(name: str) -> None:
    images, view = torch.rand(7, 3, 12, 12), make_view(name, **SETTINGS.get(name, {}))
    assert draws_by_image(view)
    if isinstance(view, NeighborView):
        view.fit(TensorDataset(images))
    state, places = torch.get_rng_state(), torch.arange(7)
    whole, after = seen_by(view, images, places), torch.get_rng_state()
    parts = []
    for start, end in ((0, 3), (3, 4), (4, 7)):
        torch.set_rng_state(state)
        with part_of_batch(start, 7):
            parts.append(seen_by(view, images[start:end], places[start:end]))
        assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(torch.cat(parts), whole)


def test_views_that_draw_otherwise_are_known() -> None:
    assert not draws_by_image(PerImage(nn.Identity()))
    assert not draws_by_image(torch.rand_like)
    assert not draws_by_image(nn.Sequential(make_view("affine"), nn.Dropout()))


def test_a_part_that_ends_beyond_its_batch_is_refused() -> None:
    with part_of_batch(5, 7), pytest.raises(ValueError, match="expected at most 2 from 5 on in a batch of 7, got 3"):
        drawn(torch.rand, 3)
    assert drawn(torch.rand, 3).shape == (3,)  # outside of it there is none
