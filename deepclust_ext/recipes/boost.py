"""The recipe of a second stage: what it learns from is the trained run's, how it learns is that of boost-digits."""

from dataclasses import replace

from deepclust_ext.methods.boost import BASES
from deepclust_ext.recipes.files import completed, load
from deepclust_ext.recipes.schema import Published, Recipe


def boost_recipe(trained: Recipe) -> Recipe:
    """Return the recipe of a second stage after a run of another.

    Images, network and test view are those of the run, and its first and its last view: of SACC a weak one and the
    strong one.

    Raises:
        ValueError: If the run was of a method whose network cannot be boosted.
    """
    if trained.method not in BASES:
        raise ValueError(f"run: expected one of {', '.join(BASES)}, whose network learns, got one of {trained.method}")
    own = load("boost-digits")
    return replace(
        own,
        data=replace(trained.data, unlabelled=0),
        backbone=trained.backbone,
        views=(trained.views[0], trained.views[-1]),
        test_view=trained.test_view,
        model={**own.model, "base": trained.method, "base_model": dict(completed(trained).model)},
        batch_size=min(own.batch_size, trained.data.images),
        sync_batch_norm=trained.sync_batch_norm,
        published=Published(),
        name=f"boost-{trained.data.dataset}",
    )
