"""NeighborHead: heads on frozen features, which agree with their moving averages about pairs of neighbors."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize
from torch.profiler import record_function

from deepclust_ext.backbones.modes import evaluation
from deepclust_ext.methods.base import ClusterHeadMethod, OptimizerSettings
from deepclust_ext.methods.pair_information import pair_information, scaled_unit_rows, teacher_statistics
from deepclust_ext.methods.shared import (
    InferenceNetwork,
    as_input,
    check_views,
    collapse_of_head,
    spread,
    update_average,
)
from deepclust_ext.ops._checks import check_divisor, check_fraction, check_size
from deepclust_ext.reference.normalize import l2_normalize

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group

#: Share of the old losses of the heads that is kept at each step, by which the best is chosen.
LOSS_MOMENTUM = 0.99


class NeighborHead(ClusterHeadMethod):
    r"""Self-distilled heads on pairs of neighbors (the form of TEMI, BMVC 2023, arXiv 2303.17896).

    The backbone is frozen and in evaluation mode. Each of H heads, the students, has a teacher, which is its
    exponential moving average. They give shares of K clusters by a softmax over ``temperature``. Let :math:`x` be a row
    and :math:`x'` one of its neighbors. The student's shares :math:`q_s` of one and the teacher's :math:`q_t` of the
    other have the pointwise mutual information

    .. math::
        pmi(x, x') = \log \sum_k \frac{(q_s(k|x) \, q_t(k|x'))^\beta}{\tilde q_t(k)}

    with :math:`\tilde q_t` the running mean of the teacher's shares. With beta below 1, shares that are spread over
    several clusters are rewarded, so large clusters are split; at 1 sizes are free. The weight of a pair says how
    likely it is that its rows share a cluster, so a false neighbor counts less:

    .. math::
        w(x, x') = \frac{1}{H} \sum_h \sum_k q^h_t(k|x) \, q^h_t(k|x')
        \qquad
        loss = -\frac{1}{2 H B} \sum_{h, pairs} w(x, x') (pmi^h(x, x') + pmi^h(x', x))

    ``terms="labels"`` is an addition to the paper: the loss is the cross entropy of the students' shares of both rows
    to the image's pseudo-label. A short phase of it starts the heads with the clusters of k-means.

    An image's cluster is the largest share of the teacher of the head whose loss has been least. Rows are the
    backbone's features themselves, so k-means on rows is the result that the heads have to beat.

    The shares of a whole batch are never in memory together. The loss and its gradient are computed at once, by blocks
    of pairs; ``backward`` only scales the gradient.

    Args:
        backbone: Maps (B, C, H, W) to (B, ``feature_dim``); its weights stay.
        feature_dim: Width of the backbone's output.
        num_clusters: K.
        num_heads: H.
        hidden_dim: Hidden width of a head; 0 for heads without hidden layers, one prototype for each cluster.
        embedding_dim: Width of a head before its last layer; without hidden layers it is ``feature_dim``.
        momentum: Share of the old teacher kept at each update.
        beta: Exponent in the information.
        temperature: Temperature of both softmaxes, over cosines times a learned scale for each cluster.
        distribution_momentum: Share of the old running mean kept at each step.
        gather_distributed: Whether the batch is that of all ranks together, as
            :class:`~deepclust_ext.training.Trainer` shares it out. Loss and gradients are then to be averaged over the
            ranks, which gives those of one process with the whole batch.
        process_group: Which ranks; None for all.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range.
    """

    num_views = 2
    uses_progress = False
    terms = ("all", "labels")
    labelled_terms = frozenset({"labels"})
    # The authors have AdamW; a decay this small makes no difference.
    default_optimizer = OptimizerSettings("adam", lr=1e-4, lr_batch_size=256, weight_decay=1e-4)
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loss": ("loss",),
        "share": ("pair_weight", "confidence"),
        "clusters": ("effective_clusters",),
        "spread": ("feature_spread",),
        "directions": ("effective_rank",),
    }
    distribution: Tensor
    head_losses: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_clusters: int,
        *,
        num_heads: int = 16,
        hidden_dim: int = 512,
        embedding_dim: int = 256,
        momentum: float = 0.996,
        beta: float = 0.6,
        temperature: float = 0.1,
        distribution_momentum: float = 0.9,
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> None:
        super().__init__()
        self.set_ranks(gather_distributed, process_group)
        self.feature_dim = check_size(feature_dim, "feature_dim")
        self.num_clusters = check_size(num_clusters, "num_clusters")
        self.num_heads = check_size(num_heads, "num_heads")
        self.hidden_dim = check_size(hidden_dim, "hidden_dim", 0)
        self.embedding_dim = check_size(embedding_dim, "embedding_dim")
        self.momentum = check_fraction(momentum, "momentum")
        self.beta = check_divisor(beta, "beta")
        self.temperature = check_divisor(temperature, "temperature")
        self.distribution_momentum = check_fraction(distribution_momentum, "distribution_momentum")
        self.backbone = backbone.requires_grad_(False)
        self.heads = nn.ModuleList(Head(feature_dim, hidden_dim, embedding_dim, num_clusters) for _ in range(num_heads))
        self.teachers = copy.deepcopy(self.heads).requires_grad_(False)
        self.register_buffer("distribution", torch.full((num_heads, num_clusters), 1 / num_clusters))
        self.register_buffer("head_losses", torch.zeros(num_heads))

    def training_step(
        self,
        views: Sequence[Tensor],  # two of (B, C, H, W): images and a neighbor of each
        pseudo_labels: Tensor | None = None,  # (B,) of terms "labels"
        index: Tensor | None = None,  # (B,) not used
        *,
        terms: str | None = None,
        epoch: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, (), and the statistics that show a collapse, all 0-dimensional.

        Raises:
            TypeError: If a view is not floating.
            ValueError: If there are not exactly two views of as many images, ``terms`` is unknown, or it needs
                ``pseudo_labels`` and there are none.
        """
        check_views(views, self.num_views)
        labels = pseudo_labels if self.chosen_terms(terms, pseudo_labels, views) == "labels" else None
        batch = self.whole_batch(views[0])
        images = torch.cat([as_input(self, view) for view in views])  # (2B, C, H, W)
        with record_function("forward"):
            with evaluation(self.backbone):
                features = self.backbone(images)
            # Without hidden layers all heads have the same rows, once in memory. Weights are made where they are used.
            unit = None if self.hidden_dim else l2_normalize(features, dim=1)
            students = [rows_of(head, features, unit) for head in self.heads]
            with torch.no_grad():
                teachers = [rows_of(head, features, unit) for head in self.teachers]
        with record_function("loss"):
            with torch.no_grad():
                parts = ((rows, weight_of(head)) for rows, head in zip(teachers, self.teachers, strict=True))
                sums, weights, confidence = teacher_statistics(parts, self.temperature)
                means = (batch.sum(sums) / batch.count(features)).to(self.distribution.dtype)
                self.distribution.lerp_(means, 1 - self.distribution_momentum)
            every = zip(students, self.heads, teachers, self.teachers, self.distribution, strict=True)
            if labels is None:
                options = (self.beta, self.temperature)
                information = [
                    pair_information(rows, weight_of(head), given, weight_of(teacher), known, weights, *options)
                    for rows, head, given, teacher, known in every
                ]
                losses = -torch.stack(information)
            else:
                both = labels.repeat(len(views))
                logits = (linear(rows, weight_of(head)) / self.temperature for rows, head, *_ in every)
                losses = torch.stack([cross_entropy(each, both) for each in logits])
            losses = batch.weight * losses
            loss = losses.mean()
            with torch.no_grad():
                if labels is None:
                    self.head_losses.lerp_(batch.mean(losses).to(self.head_losses.dtype), 1 - LOSS_MOMENTUM)
                logged = {"loss": loss, "pair_weight": batch.weight * weights.mean()}
                logged["confidence"] = batch.weight * confidence
                used = torch.special.entr(self.distribution.float()).sum(dim=1).exp()
                logged |= {"effective_clusters": used.mean()} | spread(features[: len(views[0])], batch)
        return loss, {name: term.detach() for name, term in logged.items()}

    def after_step(self, progress: float = 0.0) -> None:
        """Move the teachers towards their heads."""
        update_average(self.teachers, self.heads, self.momentum)

    def inference_network(self) -> nn.Module:
        """Return the backbone and the best teacher: rows (B, ``feature_dim``), normalized, and shares (B, K)."""
        best = int(self.head_losses.argmin()) if self.head_losses.device.type != "meta" else 0
        return InferenceNetwork(self.backbone, nn.Identity(), _Shares(self.teachers[best], self.temperature))

    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        """Return an explanation when the features are one point, or few clusters are in use, or None."""
        return collapse_of_head(terms, self.num_clusters)


class Head(nn.Module):
    """A head of TEMI: linear, GELU, linear, normalized, and a prototype with a scale for each cluster."""

    def __init__(self, dim: int, hidden_dim: int, embedding_dim: int, num_clusters: int) -> None:
        super().__init__()
        layers = [nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, embedding_dim)] if hidden_dim else []
        self.layers = nn.Sequential(*layers)
        for layer in layers[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        # Their length decides nothing but how far a step turns them: unit ones follow labels within some ten steps.
        self.prototypes = nn.Parameter(
            normalize(torch.randn(num_clusters, embedding_dim if hidden_dim else dim), dim=1)
        )
        self.scales = nn.Parameter(torch.ones(num_clusters, 1))

    @property
    def weight(self) -> Tensor:
        """The weight (K, E) of the last layer."""
        return scaled_unit_rows(self.prototypes, self.scales)

    def embed(
        self,
        features: Tensor,  # (B, D)
    ) -> Tensor:
        """Return unit rows (B, E)."""
        return l2_normalize(self.layers(features), dim=1)

    def forward(
        self,
        features: Tensor,  # (B, D)
    ) -> Tensor:
        """Return logits (B, K), not yet divided by the temperature."""
        return linear(self.embed(features), self.weight)


def rows_of(
    head: nn.Module,
    features: Tensor,  # (B, D)
    unit: Tensor | None,  # (B, E) the head's rows where they are known
) -> Tensor:
    """Return unit rows (B, E) of a head, whose products with its weight are the logits."""
    assert isinstance(head, Head)
    return head.embed(features) if unit is None else unit


def weight_of(head: nn.Module) -> Tensor:
    """Return the weight (K, E) of a head's last layer."""
    assert isinstance(head, Head)
    return head.weight


class _Shares(nn.Module):
    """Maps features to shares of the clusters."""

    def __init__(self, head: nn.Module, temperature: float) -> None:
        super().__init__()
        self.head, self.temperature = head, temperature

    def forward(
        self,
        features: Tensor,  # (B, D)
    ) -> Tensor:
        """Return shares (B, K)."""
        shares: Tensor = (self.head(features) / self.temperature).softmax(dim=1)
        return shares
