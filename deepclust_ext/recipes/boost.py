"""The recipe of a second stage: data and network come from the trained run, all else from boost-digits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deepclust_ext.methods.boost import BASES
from deepclust_ext.recipes.files import completed, load
from deepclust_ext.recipes.schema import Published, Recipe

#: Settings that say which network goes on.
OF_THE_RUN = ("model.base", "model.base_model", "backbone")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Require settings that a second stage may choose itself.

    Raises:
        ValueError: If a setting is fixed by the trained run.
    """
    for key, value in settings.items():
        if any(f"{key}.".startswith(f"{part}.") for part in OF_THE_RUN):
            raise ValueError(
                f"set: expected no {key}, which is that of the run to boost, the argument RUN, got {value!r}"
            )


def boost_recipe(trained: Recipe) -> Recipe:
    """Return the recipe of a second stage after a run of another.

    Images, network, test view, and the first and last view are those of the run: of SACC a weak view and the strong
    one.

    Raises:
        ValueError: If the method of the run cannot be boosted.
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
