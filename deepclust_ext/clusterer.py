"""Deep clustering as an estimator of scikit-learn's, from images to clusters, rows and shares."""

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import validate_data
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from deepclust_ext import recipes
from deepclust_ext.backbones.load import check_backbone
from deepclust_ext.cluster.inputs import RandomState, as_rows, check_random_state, checked_rows, make_generator
from deepclust_ext.data import Images, load_images
from deepclust_ext.data.stores import Files
from deepclust_ext.inference import Trained, takes_any_size
from deepclust_ext.methods import ClusterHeadMethod
from deepclust_ext.methods.boost import NO_START
from deepclust_ext.ops._checks import check_integer, check_seed
from deepclust_ext.recipes import Recipe
from deepclust_ext.recipes.build import make_trainer, make_views
from deepclust_ext.recipes.files import method_named
from deepclust_ext.recipes.rows import rows_recipe
from deepclust_ext.reference.normalize import l2_normalize
from deepclust_ext.training import Trainer
from deepclust_ext.training.checkpoint import random_state, restore_random_state


class DeepClusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Train a network on images without labels and cluster them, with the interface of scikit-learn's estimators.

    ``X`` is images or rows of features:

    * an array or tensor of images, (N, H, W), (N, H, W, C) or (N, C, H, W), where C is the smaller of the second and
      the last side, and it is an error if these are equal. Integers use the range of their type from black to white; in
      floats 0 is black and 1 is white;
    * the path of a folder of images, or of a file of a kind that :func:`deepclust_ext.data.load_images` takes;
    * a list of paths of image files, each of which has to be readable;
    * :class:`deepclust_ext.data.Images`;
    * whatever scikit-learn takes as rows (N, D). These are standardized and go through a perceptron; views are made by
      noise. Rows of pixels are not recognized as images: give scikit-learn's digits as ``X.reshape(-1, 8, 8)``.

    ``y`` of any method is ignored. The global state of random numbers is not changed. Results are numpy arrays. A
    pickled or copied estimator holds its weights, gives the same results to the bit, and is on the CPU until it is
    used.

    Args:
        method: "hadis", "sacc", "pici" or "clc", in upper or lower case; a recipe has its own method.
        n_clusters: K, even if a recipe has another.
        recipe: Name of a bundled recipe, path of a file, or a Recipe; None for one chosen from X. The recipe's number
            of images and channels are replaced by those of X, and its batches are no larger than X.
        epochs: Passes over the images; None for the recipe's.
        random_state: Seed below 2^32 of everything random, or a source of it, see
            :class:`deepclust_ext.cluster.KMeans`.
        device: Where to train and compute, such as "cuda"; None for a GPU if there is one.
        out: Empty folder for checkpoint and history; None for one that is removed at the end.
        num_workers: Processes that load images.

    Attributes:
        labels_: (N,) int64, the cluster of each image of the last ``fit``.
        cluster_centers_: (K, D), the unit mean of each cluster's rows; 0 for an empty cluster.
        names_: Names of the images of a folder or list, in the order of ``labels_``, without unreadable ones; None for
            other X.
        recipe_: All settings of the run.
        history_: One record of mean terms for each epoch.
        n_iter_: Epochs.
        n_features_in_: Values of an image as the network sees it, or columns.
        feature_names_in_: Names of columns, if rows were a data frame whose columns have text as names.
        trained_: :class:`deepclust_ext.inference.Trained`.

    Example:
        >>> images = torch.rand(40, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> clusterer = DeepClusterer("sacc", 3, recipe="sacc-digits", epochs=1, device="cpu").fit(images)
        >>> clusterer.labels_.shape, clusterer.predict_proba(images).shape
        ((40,), (40, 3))
    """

    labels_: NDArray[np.int64]
    cluster_centers_: NDArray[np.float32]
    names_: list[str] | None
    recipe_: Recipe
    history_: list[dict[str, float]]
    n_iter_: int
    n_features_in_: int
    trained_: Trained

    def __init__(
        self,
        method: str = "hadis",
        n_clusters: int = 10,
        *,
        recipe: str | os.PathLike[str] | Recipe | None = None,
        epochs: int | None = None,
        random_state: RandomState = 0,
        device: torch.device | str | None = None,
        out: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
    ) -> None:
        self.method = method
        self.n_clusters = n_clusters
        self.recipe = recipe
        self.epochs = epochs
        self.random_state = random_state
        self.device = device
        self.out = out
        self.num_workers = num_workers

    def fit(self, X: Any, y: object = None) -> "DeepClusterer":  # noqa: N803
        """Train on images and cluster them.

        Raises:
            FileExistsError: If ``out`` holds a run.
            FloatingPointError: If a loss or a weight is not finite.
            TypeError: If X is none of these kinds, or an argument of the estimator has the wrong type.
            ValueError: If a shape or value does not fit; the message names it.
        """
        seed, named = self._seed(), self._named_recipe()
        check_integer(self.n_clusters, "n_clusters", 1)
        data, scaling = _opened(X), None
        if len(data) < 2:
            raise ValueError(f"X: expected at least 2 images or rows, got n_samples = {len(data)}")
        if not isinstance(data, Images):
            deviation, mean = torch.std_mean(data, dim=0, correction=0)
            scaling = mean, torch.where(deviation > 0, deviation, 1)
        recipe = self._recipe_of(data, named)
        size, resized = recipe.data.size, None
        if isinstance(data, Images) and data.image_size != (size, size) and not takes_any_size(*make_views(recipe)):
            resized, data = size, _opened(X, size)
        images = data if isinstance(data, Images) else _as_images(data, scaling)
        with ExitStack() as stack:
            stack.enter_context(_random_state_kept())
            out = self.out or stack.enter_context(tempfile.TemporaryDirectory(prefix="deepclust-"))
            settings = {"seed": seed, "num_workers": self.num_workers, "device": self._device()}
            trainer = make_trainer(recipe, images, out, **settings)  # type: ignore[arg-type]
            history = trainer.fit()
            trained = Trained(trainer.method, trainer.test_view, _centers(trainer))
        self.recipe_, self.history_, self.n_iter_, self.trained_ = recipe, history, len(history), trained
        self._scaling, self._resized = scaling, resized
        rows, shares = self._inferred(images)
        labels = shares.argmax(dim=1)
        sums = rows.new_zeros(shares.shape[1], rows.shape[1]).index_add_(0, labels, rows)
        self.cluster_centers_ = l2_normalize(sums, dim=1).numpy()
        self.labels_ = labels.numpy()
        self.names_ = images.names if isinstance(images, Images) else None
        if scaling is None:
            self.n_features_in_ = recipe.data.channels * size**2
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        else:
            validate_data(self, X, skip_check_array=True)
        return self

    def predict(self, X: Any) -> NDArray[np.int64]:  # noqa: N803
        """Return the cluster of each image, (N,) int64; for a folder in the order of ``data.load_images(X).names``."""
        labels: NDArray[np.int64] = self.predict_proba(X).argmax(axis=1)
        return labels

    def predict_proba(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Return each image's shares of the clusters, (N, K), which are no calibrated probabilities."""
        return self._inferred(self._to_predict(X))[1].numpy()

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Return a unit row for each image, (N, D)."""
        return self._inferred(self._to_predict(X))[0].numpy()

    def score(self, X: Any, y: object = None) -> float:  # noqa: N803
        """Return how clearly images belong to one cluster, between -1 and 1: the silhouette by centers, without labels.

        It is the mean of (b - a) / max(a, b), where a is the cosine distance of an image's row to the center of its
        cluster, and b that to the nearest other center; it is 0 if all rows are equal, or there is one cluster. Use it
        to compare seeds and settings. Only labels can tell whether clusters mean what you want: see
        :func:`deepclust_ext.evaluation.score_clusters`.

        Source: Rousseeuw, "Silhouettes", 1987; Hruschka et al., "Evolutionary search for optimal fuzzy c-means", 2004.
        """
        rows, shares = self._inferred(self._to_predict(X))
        centers = torch.from_numpy(self.cluster_centers_)
        distances = (1 - rows.double() @ centers.double().T).clamp(min=0)
        own = shares.argmax(dim=1, keepdim=True)
        distances[:, ~centers.any(dim=1)] = torch.inf  # nobody is near an empty cluster
        near = distances.gather(1, own).squeeze(1)
        other = distances.scatter(1, own, torch.inf).amin(dim=1)
        valid = near.isfinite() & other.isfinite() & (torch.maximum(near, other) > 0)
        each = torch.where(valid, (other - near) / torch.maximum(near, other), 0)
        return float(each.mean())

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with weights on the CPU, so that it can be read where there is no GPU."""
        state: dict[str, Any] = super().__getstate__()
        if "trained_" in state:
            state = state | {"trained_": copy.deepcopy(state["trained_"]).cpu()}
        return state

    def __sklearn_tags__(self) -> Any:
        """Return the tags that scikit-learn's pipelines and checks ask for."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []  # rows are float32
        return tags

    @property
    def _n_features_out(self) -> int:
        """Number of columns of :meth:`transform`, which scikit-learn asks for to name them."""
        return int(self.cluster_centers_.shape[1])

    def _seed(self) -> int:
        check_random_state(self.random_state)
        if isinstance(self.random_state, (int, np.integer)):
            return check_seed(self.random_state, "random_state")
        return int(torch.randint(2**32, (), generator=make_generator(self.random_state), device="cpu"))

    def _device(self) -> torch.device:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if self.device is None else self.device)

    def _named_recipe(self) -> Recipe | None:
        """Return the named recipe, or None for a method's default one; no image is read for this."""
        if self.epochs is not None:
            check_integer(self.epochs, "epochs", 1)
        if self.recipe is None:
            method_named(self.method)
            return None
        recipe = self.recipe if isinstance(self.recipe, Recipe) else recipes.load(self.recipe)  # type: ignore[arg-type]
        if recipe.method == "Boost":
            raise ValueError(f"recipe: expected one of a method that begins anew, got {recipe.name}, {NO_START}")
        check_backbone(recipe.backbone.name, recipe.backbone.stem)
        return recipe

    def _recipe_of(self, data: Images | Tensor, named: Recipe | None) -> Recipe:
        count, channels = len(data), data.channels if isinstance(data, Images) else data.shape[1]
        if named is None:
            method = method_named(self.method)
            if isinstance(data, Images):
                from deepclust_ext.recipes.defaults import default_recipe

                recipe, _ = default_recipe(data, self.n_clusters, method=method, device=self._device())
            else:
                recipe = rows_recipe(count, channels, self.n_clusters, method=method)
        else:
            recipe = named
            own: dict[str, Any] = {"data.images": count, "data.channels": channels}
            own |= {"data.num_clusters": self.n_clusters, "batch_size": min(recipe.batch_size, count)}
            if recipe.test_view is None and isinstance(data, Images):  # integers and other sizes may come later
                own["test_view"] = {"name": "resize", "size": recipe.data.size}
            recipe = recipes.changed(recipe, own)
        return recipe if self.epochs is None else recipe.with_epochs(int(self.epochs))

    def _to_predict(self, X: Any) -> Dataset[Any]:  # noqa: N803
        """Return images or rows of the kind that was fitted."""
        if not hasattr(self, "trained_"):
            raise NotFittedError("DeepClusterer: expected fit to be called first")
        data = _opened(X, self._resized, cache="none")
        if isinstance(data, Images) != (self._scaling is None):
            kinds = ("images", "rows") if self._scaling is None else ("rows", "images")
            raise ValueError(f"X: expected {kinds[0]} as in fit, got {kinds[1]}")
        if not isinstance(data, Images):
            validate_data(self, X, reset=False, skip_check_array=True)
            return _as_images(data, self._scaling)
        if data.channels != self.recipe_.data.channels:
            raise ValueError(f"X: expected images of {self.recipe_.data.channels} channels, got {data.channels}")
        return data

    def _inferred(self, images: Dataset[Any]) -> tuple[Tensor, Tensor]:
        settings: dict[str, Any] = {"batch_size": self.recipe_.batch_size, "num_workers": self.num_workers}
        with _random_state_kept():  # of which loading takes a number
            return self.trained_.to(self._device()).infer(images, **settings)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the global state of random numbers afterwards."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


def _opened(X: Any, size: int | None = None, *, cache: str = "auto") -> Images | Tensor:  # noqa: N803
    """Return images, or rows (N, D) float64.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        TypeError: If X is of no kind that is taken.
        ValueError: If a shape does not fit, or a number of a row is not finite.
    """
    if isinstance(X, Images):
        return X
    if isinstance(X, str | os.PathLike):
        return load_images(X, size=size, cache=cache)
    if isinstance(X, Sequence) and len(X) and all(isinstance(path, str | os.PathLike) for path in X):
        return Images(Files([Path(path) for path in X]), size=size, cache=cache, on_error="raise")
    if _num_dimensions(X) in (3, 4):
        array = X.detach().cpu().numpy() if isinstance(X, Tensor) else np.asarray(X)
        return load_images(array, size=size, cache="none")
    return checked_rows(as_rows(X, "X").cpu().double(), "euclidean", "X")


def _num_dimensions(X: Any) -> int:  # noqa: N803
    try:
        return X.dim() if isinstance(X, Tensor) else np.asarray(X).ndim
    except ValueError:  # lists of different lengths
        return 0


def _as_images(
    rows: Tensor,  # (N, D)
    scaling: tuple[Tensor, Tensor] | None,  # mean (D,) and deviation (D,)
) -> Dataset[Any]:
    """Return standardized rows as images of one pixel, (D, 1, 1)."""
    assert scaling is not None
    mean, deviation = scaling
    return TensorDataset(((rows - mean) / deviation).float()[:, :, None, None])


def _centers(trainer: Trainer) -> Tensor | None:
    """Return the centers (K, D) of spherical k-means on the rows of a method without a cluster head."""
    if isinstance(trainer.method, ClusterHeadMethod):
        return None
    kmeans = trainer.config.kmeans.spherical(trainer.method.num_clusters, trainer.config.seed)
    centers: Tensor = kmeans.fit(trainer.embed()).cluster_centers_
    return centers
