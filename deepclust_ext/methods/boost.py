"""Boost: a second stage on a trained network, by reliable images, their neighbors and k-means' clusters."""

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.profiler import record_function

from deepclust_ext.losses import PrototypeLoss
from deepclust_ext.methods.base import SURROUNDINGS, ClusterHeadMethod, ClusteringMethod, OptimizerSettings
from deepclust_ext.methods.clc import CLC
from deepclust_ext.methods.hadis import HaDis
from deepclust_ext.methods.pici import PICI
from deepclust_ext.methods.sacc import SACC
from deepclust_ext.methods.shared import InferenceNetwork, as_input, check_views, mlp, spread, update_average
from deepclust_ext.methods.whole_batch import WholeBatch
from deepclust_ext.ops import diffused_neighbor_gather, nearest_neighbors
from deepclust_ext.ops._checks import (
    check_divisor,
    check_factor,
    check_fraction,
    check_integer,
    check_positive,
    check_size,
)
from deepclust_ext.ops.nearest_neighbors import MAX_NEIGHBORS
from deepclust_ext.reference.normalize import l2_normalize

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group

#: Whose networks can be boosted, by name: those of methods that train a backbone.
BASES: dict[str, Any] = {kind.__name__: kind for kind in (HaDis, SACC, PICI, CLC)}
#: What to do instead of training it on its own.
NO_START = "whose network Boost goes on from, as in `deepclust-ext boost RUN`"
#: Arguments of each of them that Boost has itself.
GIVEN = ("backbone", "feature_dim", "num_clusters")


class Boost(ClusteringMethod):
    r"""A second stage on the network of a trained run (the form of DCBoost, NeurIPS 2025, arXiv 2511.21193).

    The network is the part of the trained method that makes rows: backbone and head; of HaDis, those of the teacher. If
    there is a cluster head, both heads count, because CLC's rows do not represent what its cluster head knows. Then the
    row is :math:`(z, \sqrt{c}) / \sqrt{2}`, with the unit row :math:`z` and the shares :math:`c`. (:math:`\sqrt{c}` has
    length 1.) :meth:`start_from` copies the weights. The student starts from them, and the target is its exponential
    moving average. The predictor begins as the identity, so the first steps see the rows unchanged.

    Only the abstract and a summary of the paper could be read. They name high-confidence images, found by the
    consistency of an adaptive number of nearest neighbors within the batch, and the loss :math:`L = L_{pos} + L_{neg} +
    L_{ins}` on them, for compact clusters, separate clusters, and the views of an image. How k adapts, the form of each
    term and all numbers are this package's choice, as follows.

    Pseudo-labels come from k-means on the target's rows of all images, in every epoch. In a batch, nearness is that of
    the target's mean rows of both views. The depth :math:`d_i` of an image is the number of its nearest neighbors,
    counted from the first until one has another label. For each cluster, k is the largest number, up to
    ``num_neighbors``, such that a share ``reliable_share`` of its images have :math:`d_i \ge k`; it is at least 1. So
    more is asked of well separated clusters. Images with :math:`d_i \ge k` are reliable. With the student's row
    :math:`q` of one view, the target's :math:`t` of the other and :math:`p = \mathrm{predictor}(q)`, the losses are

    * instance: :math:`-2 \cos(p, t)`;
    * neighbor: :math:`-2 \cos(p, s)`, where :math:`s` is the row of a reliable neighbor in the batch plus noise, drawn
      by :func:`deepclust_ext.diffused_neighbor_gather`. So an image that is not reliable, for example in a wrong
      cluster, is pulled to the nearest reliable images, whatever their label;
    * prototype: :class:`~deepclust_ext.losses.PrototypeLoss` of :math:`q` and :math:`t`, of reliable images alone.

    The total is the mean over both directions of instance + ``neighbor_weight`` x neighbor + ``prototype_weight`` x
    prototype. Final clusters are those of k-means on the target's rows.

    Args:
        backbone: A backbone like that of the trained method.
        feature_dim: Width of the backbone's output.
        num_clusters: K.
        base: Name of the trained method's class: HaDis, SACC, PICI or CLC.
        base_model: Arguments that the trained method was built with, as in its recipe; None for its defaults.
        hidden_dim: Hidden width of the predictor.
        momentum: Share of the old target kept at each update.
        noise_std: Standard deviation of the noise on the neighbor's row, which has length 1.
        temperature: Temperature of the prototype loss.
        num_neighbors: Largest k, and number of neighbors that one is drawn from.
        neighbor_temperature: Temperature of the neighbors' probabilities, a softmax of cosines.
        reliable_share: Share of each cluster that is reliable at least, if enough images agree with their first
            neighbor.
        neighbor_weight: Weight of the neighbor loss.
        prototype_weight: Weight of the prototype loss.
        gather_distributed: Whether the batch is that of all ranks together, as
            :class:`~deepclust_ext.training.Trainer` shares it out. Loss and gradients are then to be averaged over the
            ranks, which gives those of one process with the whole batch.
        process_group: Which ranks; None for all.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range, or the base is unknown or does not take its arguments.
    """

    num_views = 2
    uses_progress = False
    terms = ("all",)
    labelled_terms = frozenset({"all"})
    default_optimizer = OptimizerSettings("adam", lr=3e-4)  # the paper's was not at hand
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loss": ("loss", "instance", "neighbor", "prototype"),
        "share of the images": ("reliable",),
        "neighbors": ("asked_neighbors",),
        "spread": ("feature_spread",),
        "directions": ("effective_rank",),
    }

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_clusters: int,
        *,
        base: str = "HaDis",
        base_model: Mapping[str, Any] | None = None,
        hidden_dim: int = 4096,
        momentum: float = 0.996,
        noise_std: float = 0.001,
        temperature: float = 0.5,
        num_neighbors: int = 10,
        neighbor_temperature: float = 0.1,
        reliable_share: float = 0.5,
        neighbor_weight: float = 1.0,
        prototype_weight: float = 1.0,
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> None:
        super().__init__()
        ranks = self.set_ranks(gather_distributed, process_group)
        self.feature_dim = check_size(feature_dim, "feature_dim")
        self.num_clusters = check_size(num_clusters, "num_clusters")
        self.hidden_dim = check_size(hidden_dim, "hidden_dim")
        self.momentum = check_fraction(momentum, "momentum")
        self.noise_std = check_factor(noise_std, "noise_std")
        self.temperature = check_divisor(temperature, "temperature")
        self.num_neighbors = check_integer(num_neighbors, "num_neighbors", 1, MAX_NEIGHBORS)
        self.neighbor_temperature = check_positive(neighbor_temperature, "neighbor_temperature")
        self.reliable_share = check_fraction(reliable_share, "reliable_share")
        self.neighbor_weight = check_factor(neighbor_weight, "neighbor_weight")
        self.prototype_weight = check_factor(prototype_weight, "prototype_weight")
        if base_model is not None and not isinstance(base_model, Mapping):
            raise TypeError(f"base_model: expected arguments by name, got {type(base_model).__name__}")
        self.base, self.base_model = base, dict(base_model or {})
        learns = [parameter.requires_grad for parameter in backbone.parameters()]
        trained = _base(base, self.base_model)(backbone, feature_dim, num_clusters, **self.base_model)
        self.student = EmbeddingNetwork(trained.inference_network()).requires_grad_(True)
        for parameter, learned in zip(self.student.backbone.parameters(), learns, strict=True):
            parameter.requires_grad_(learned)  # a backbone may have frozen parts of its own
        width = trained.embedding_dim + (num_clusters if isinstance(trained, ClusterHeadMethod) else 0)
        self.predictor = Predictor(width, hidden_dim)
        self.target = copy.deepcopy(self.student).requires_grad_(False)
        self.prototypes = PrototypeLoss(temperature, **ranks)

    def start_from(self, trained: ClusteringMethod) -> None:
        """Take over the weights of a trained method's network.

        Raises:
            ValueError: If it is no ``base`` or subclass of it, or was built with other arguments.
        """
        if not isinstance(trained, BASES[self.base]):
            raise ValueError(f"start: expected the network of {self.base}, got that of {type(trained).__name__}")
        weights = EmbeddingNetwork(trained.inference_network()).state_dict()
        try:
            for network in (self.student, self.target):
                network.load_state_dict(weights)
        except RuntimeError as error:
            difference = str(error).splitlines()[1].strip()[:200]
            expected = "the network that base_model describes"
            raise ValueError(f"start: expected {expected}, got another: {difference}") from error

    def training_step(
        self,
        views: Sequence[Tensor],  # two of (B, C, H, W)
        pseudo_labels: Tensor | None = None,  # (B,)
        index: Tensor | None = None,  # (B,) not used
        *,
        terms: str | None = None,
        epoch: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, (), and its terms with the statistics that show a collapse, all 0-dimensional.

        Raises:
            TypeError: If a view is not floating.
            ValueError: If there are not exactly two views of the same images, ``terms`` is unknown, or there are no
                ``pseudo_labels``.
        """
        check_views(views, self.num_views)
        self.chosen_terms(terms, pseudo_labels, views)
        assert pseudo_labels is not None
        views = [as_input(self.student, view) for view in views]
        batch = self.whole_batch(views[0])
        with record_function("forward"):
            rows = [self.student(view) for view in views]
            predicted = [self.predictor(row) for row in rows]
            with torch.no_grad():
                targets = [self.target(view) for view in views]
        with record_function("loss"):
            neighbors, trusted, statistics = self._neighbors(targets, pseudo_labels, batch)
            pairs = [(0, 1), (1, 0)]  # the student's view and the other one, of the target
            parts = {
                "instance": [_distance(predicted[i], targets[j], batch) for i, j in pairs],
                "neighbor": [_distance(predicted[i], neighbors[j], batch) for i, j in pairs],
                "prototype": [self.prototypes(rows[i], targets[j], trusted, self.num_clusters) for i, j in pairs],
            }
            means = {name: (first + second) / 2 for name, (first, second) in parts.items()}
            loss = means["instance"] + self.neighbor_weight * means["neighbor"]
            loss = loss + self.prototype_weight * means["prototype"]
            logged = {"loss": loss} | means | statistics | spread(targets[0], batch)
        return loss, {name: term.detach() for name, term in logged.items()}

    @torch.no_grad()
    def _neighbors(
        self,
        targets: Sequence[Tensor],  # two of (b, D)
        labels: Tensor,  # (b,)
        batch: WholeBatch,
    ) -> tuple[Sequence[Tensor], Tensor, dict[str, Tensor]]:
        """Return two noisy rows (b, D) of reliable neighbors, labels (b,), -1 if not reliable, and statistics."""
        rows, labels = batch.rows(l2_normalize(targets[0] + targets[1], dim=1)), batch.rows(labels)
        own = torch.arange(len(rows), device=rows.device)
        _, near = nearest_neighbors(rows, rows, k=self.num_neighbors, exclude=own)
        reliable, asked = reliable_images(near, labels, self.num_clusters, self.reliable_share)
        samples, _ = diffused_neighbor_gather(
            rows,
            rows,
            num_neighbors=self.num_neighbors,
            temperature=self.neighbor_temperature,
            noise_std=self.noise_std,
            num_samples=len(targets),
            exclude=own,
            valid=reliable,
        )
        trusted = batch.own(torch.where(reliable, labels, -1))
        statistics = {"reliable": reliable.float().mean(), "asked_neighbors": asked[labels].float().mean()}
        return batch.own(samples).unbind(dim=1), trusted, statistics

    def after_step(self, progress: float = 0.0) -> None:
        """Move the target towards the student, except for its batch-norm statistics."""
        update_average(self.target, self.student, self.momentum)

    def inference_network(self) -> nn.Module:
        """Return the target, whose rows (B, D) are normalized."""
        return InferenceNetwork(self.target, nn.Identity())

    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        """Return an explanation when the rows are one point, or None."""
        if terms["feature_spread"] < 0.01:
            return f"with a feature spread of {terms['feature_spread']:.2g} the features have collapsed to a point"
        return None


class EmbeddingNetwork(nn.Module):
    """Maps images to the unit rows of a trained network; with a cluster head the roots of its shares are part of them.

    Args:
        network: Of a trained method; its parts are shared.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, InferenceNetwork)
        self.backbone, self.row_head, self.share_head = network.backbone, network.row_head, network.share_head

    def forward(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return rows (B, D)."""
        features = self.backbone(images)
        rows = l2_normalize(self.row_head(features), dim=1)
        if self.share_head is None:
            return rows
        shares = self.share_head(features)
        # A share of 0 would have an infinite gradient; one below the smallest normal number has none.
        roots = shares.clamp(min=torch.finfo(shares.dtype).tiny).sqrt()
        return torch.cat([rows, roots], dim=1) / math.sqrt(2)


class Predictor(nn.Module):
    """Adds the output of an MLP to rows; the output is 0 at first."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.layers = mlp(dim, hidden_dim, dim, final_std=0.0)
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(
        self,
        rows: Tensor,  # (B, D)
    ) -> Tensor:
        """Return rows (B, D)."""
        predicted: Tensor = rows + self.layers(rows)
        return predicted


def reliable_images(
    near: Tensor,  # (B, k) places of the nearest neighbors in the batch, the nearest first, -1 for none
    labels: Tensor,  # (B,)
    num_clusters: int,
    share: float,
) -> tuple[Tensor, Tensor]:
    """Return which images are reliable (B,), and how many neighbors each cluster is asked for (K,).

    An image's depth is the number of its neighbors, from the first on, that have its label. A cluster is asked for the
    largest number, at least 1, that a share ``share`` of its images reach.
    """
    agree = (labels[near.clamp(min=0)] == labels.unsqueeze(1)) & (near >= 0)
    depth = agree.to(torch.int64).cumprod(dim=1).sum(dim=1)
    reached = depth.unsqueeze(1) >= torch.arange(near.shape[1] + 1, device=near.device)  # (B, k + 1)
    counts = torch.zeros(num_clusters, near.shape[1] + 1, dtype=torch.int64, device=near.device)
    counts = counts.index_add(0, labels, reached.to(torch.int64))  # the first column holds the sizes
    asked = (counts[:, 1:] >= share * counts[:, :1]).sum(dim=1).clamp(min=1)
    return depth >= asked[labels], asked


def _distance(
    predicted: Tensor,  # (b, D)
    target: Tensor,  # (b, D)
    batch: WholeBatch,
) -> Tensor:
    return -2 * cosine_similarity(predicted, target).mean() * batch.weight


def _base(name: str, model: Mapping[str, Any]) -> Any:
    """Return the class of a trained method; it must take these arguments."""
    if name not in BASES:
        raise ValueError(f"base: expected one of {', '.join(BASES)}, got {name!r}")
    known = [key for key in inspect.signature(BASES[name]).parameters if key not in (*GIVEN, *SURROUNDINGS)]
    unknown = [key for key in model if key not in known]
    if unknown:
        raise ValueError(f"base_model: expected arguments of {name}, {', '.join(known)}, got {unknown[0]!r}")
    return BASES[name]
