"""TURTLE: linear heads on frozen features, whose labeling is the one that linear classifiers learn best."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, pad
from torch.profiler import record_function

from deepclust_ext.backbones.modes import evaluation
from deepclust_ext.methods.base import ClusterHeadMethod, OptimizerSettings
from deepclust_ext.methods.neighborhead import Head
from deepclust_ext.methods.shared import InferenceNetwork, as_input, check_views, collapse_of_head, spread, usage
from deepclust_ext.methods.whole_batch import WholeBatch
from deepclust_ext.ops._checks import check_divisor, check_factor, check_integer, check_size, check_type
from deepclust_ext.reference.normalize import l2_normalize

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class TURTLE(ClusterHeadMethod):
    r"""A labeling that max-margin classifiers agree with (the form of TURTLE, ICML 2024, arXiv 2406.07236).

    The backbone is frozen and in evaluation mode. Features are those of one network, or of several side by side. In
    each feature space :math:`s` a head gives shares of K clusters: a softmax, with ``temperature`` :math:`\tau`, of the
    cosines of a unit row :math:`z_s` with prototypes, each times a scale. The labeling q (which the paper calls
    :math:`\tau`) is their mean:

    .. math::
        q(x) = \frac{1}{S} \sum_s q_s(x)
        \qquad
        q_s(x) = \mathrm{softmax}(a \cos(\theta_s, z_s) / \tau)

    At each step a linear classifier :math:`w_s` in each space makes some steps of gradient descent on its cross entropy
    to the labeling, starting where the last step ended. On separable clusters, gradient descent tends to the classifier
    with the largest margin. Then, with the classifiers held constant, the heads learn a labeling that these find easy:

    .. math::
        loss = \sum_s CE(w_s z_s, q) - \gamma \sum_s H(\mathrm{mean}_x \, q_s(x))

    With gamma at 1 sizes are free; above 1 large clusters are split, below 1 small ones vanish. By the numbers that the
    authors' code gives (https://github.com/mlbio-epfl/turtle), the labeling is the paper's equation 9, the loss its
    equation 12. That its gradient does not go through the steps of the classifiers is equation 13.

    ``terms="labels"`` is an addition to the paper: the loss is the cross entropy of the heads' shares to pseudo-labels.
    A short phase of it starts the heads with the clusters of k-means. The classifiers learn in that phase too.

    An image's cluster is the largest share of the labeling. Rows are the backbone's features themselves, so k-means on
    rows is the result that the heads have to beat.

    Args:
        backbone: Maps (B, C, H, W) to (B, ``feature_dim``); its weights stay.
        feature_dim: Width of the backbone's output.
        num_clusters: K.
        spaces: Widths of the feature spaces that stand side by side in a row, in this order; None for one.
        gamma: Weight of the entropy.
        inner_steps: Number of steps of the classifiers in each step of the heads.
        temperature: Temperature of the heads' softmax.
        gather_distributed: Whether the batch is that of all ranks together, as
            :class:`~deepclust_ext.training.Trainer` shares it out. Loss and gradients are then to be averaged over the
            ranks, which gives those of one process with the whole batch.
        process_group: Which ranks; None for all.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range, or the spaces are not as wide together as the features.
    """

    num_views = 1
    uses_progress = False
    terms = ("all", "labels")
    labelled_terms = frozenset({"labels"})
    default_optimizer = OptimizerSettings("adam", lr=1e-3)
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loss": ("loss",),
        "cross entropy": ("error",),
        "share": ("confidence",),
        "clusters": ("effective_clusters",),
        "spread": ("feature_spread",),
        "directions": ("effective_rank",),
    }

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_clusters: int,
        *,
        spaces: Sequence[int] | None = None,
        gamma: float = 10.0,
        inner_steps: int = 10,
        temperature: float = 0.1,
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> None:
        super().__init__()
        self.set_ranks(gather_distributed, process_group)
        self.feature_dim = check_size(feature_dim, "feature_dim")
        self.num_clusters = check_size(num_clusters, "num_clusters")
        self.gamma = check_factor(gamma, "gamma")
        self.inner_steps = check_integer(inner_steps, "inner_steps", 1)
        self.temperature = check_divisor(temperature, "temperature")
        self.spaces = spaces
        widths = [feature_dim] if spaces is None else check_type(spaces, "spaces", list | tuple, "a list of widths")
        widths = [check_size(width, f"spaces.{place}") for place, width in enumerate(widths)]
        if sum(widths) != feature_dim:
            raise ValueError(f"spaces: expected widths that add up to feature_dim {feature_dim}, got {sum(widths)}")
        self.backbone = backbone.requires_grad_(False)
        self.labeling = Labeling(widths, num_clusters, self.temperature)
        for place, width in enumerate(widths):  # with a bias, in the last column
            self.register_buffer(f"classifier_{place}", torch.zeros(num_clusters, width + 1))

    def training_step(
        self,
        views: Sequence[Tensor],  # one of (B, C, H, W)
        pseudo_labels: Tensor | None = None,  # (B,) of terms "labels"
        index: Tensor | None = None,  # (B,) not used
        *,
        terms: str | None = None,
        epoch: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, (), and the statistics that show a collapse, all 0-dimensional.

        Raises:
            TypeError: If the view is not floating.
            ValueError: If there is not exactly one view, ``terms`` is unknown, or it needs ``pseudo_labels`` and there
                are none.
        """
        check_views(views, self.num_views)
        labels = pseudo_labels if self.chosen_terms(terms, pseudo_labels, views) == "labels" else None
        batch = self.whole_batch(views[0])
        with record_function("forward"), evaluation(self.backbone):
            features = as_input(self.labeling, self.backbone(as_input(self, views[0])))
        with record_function("loss"), torch.autocast(features.device.type, enabled=False):
            wide = torch.promote_types(features.dtype, torch.float32)
            logits = [own.to(wide) for own in self.labeling.logits(features)]
            rows = [l2_normalize(part.to(wide), dim=1) for part in self.labeling.spaces_of(features)]
            shares = [own.softmax(dim=1) for own in logits]
            labeling = torch.stack(shares).mean(dim=0)  # equation 9
            errors = []
            for place, own in enumerate(rows):
                scores = self._classified(place, own, labeling.detach(), batch)  # without a gradient: equation 13
                errors.append(cross_entropy(scores, labeling))
            error = batch.weight * torch.stack(errors).sum()
            if labels is None:  # equation 12
                loss = error - self.gamma * torch.stack([_entropy(own, batch) for own in shares]).sum()
            else:
                loss = batch.weight * torch.stack([cross_entropy(own, labels) for own in logits]).sum()
            logged = {"loss": loss, "error": error} | usage(labeling, batch) | spread(features, batch)
        return loss, {name: term.detach() for name, term in logged.items()}

    @torch.no_grad()
    def _classified(
        self,
        place: int,
        rows: Tensor,  # (B, D)
        labeling: Tensor,  # (B, K)
        batch: WholeBatch,
    ) -> Tensor:
        """Return logits (B, K) of a classifier after its steps towards a labeling."""
        stored = self.get_buffer(f"classifier_{place}")
        weight, rows = stored.to(rows.dtype), pad(rows, (0, 1), value=1.0)
        sizes = batch.sum(labeling.sum(dim=0))
        for _ in range(self.inner_steps):
            excess = linear(rows, weight).softmax(dim=1).sub_(labeling)
            sums = batch.sum(excess.T @ rows)  # (K, D + 1), in the last column those of the shares
            # A cluster's share of the curvature is at most its size times the squared length of a row, which is 2.
            weight = weight - sums / (2 * torch.maximum(sizes, sizes + sums[:, -1]).amax())
        stored.copy_(weight)
        return linear(rows, weight)

    def inference_network(self) -> nn.Module:
        """Return backbone and labeling: rows (B, ``feature_dim``), normalized, and shares (B, K)."""
        return InferenceNetwork(self.backbone, nn.Identity(), self.labeling)

    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        """Return an explanation when the features are one point, or few clusters are in use, or None."""
        return collapse_of_head(terms, self.num_clusters)


class Labeling(nn.Module):
    """Maps features to the mean of the shares that the heads of all feature spaces give."""

    def __init__(self, widths: Sequence[int], num_clusters: int, temperature: float) -> None:
        super().__init__()
        self.widths, self.temperature = list(widths), temperature
        self.heads = nn.ModuleList(Head(width, 0, width, num_clusters) for width in widths)

    def spaces_of(
        self,
        features: Tensor,  # (B, D)
    ) -> Sequence[Tensor]:
        """Return the features of each space."""
        parts: Sequence[Tensor] = features.split(self.widths, dim=1)
        return parts

    def logits(
        self,
        features: Tensor,  # (B, D)
    ) -> list[Tensor]:
        """Return logits (B, K) of each head."""
        parts = self.spaces_of(features)
        return [head(part) / self.temperature for head, part in zip(self.heads, parts, strict=True)]

    def forward(
        self,
        features: Tensor,  # (B, D)
    ) -> Tensor:
        """Return shares (B, K)."""
        return torch.stack([own.softmax(dim=1) for own in self.logits(features)]).mean(dim=0)


def _entropy(
    shares: Tensor,  # (b, K) at hand
    batch: WholeBatch,
) -> Tensor:
    """Return the entropy of the mean shares over all ranks; its gradients, averaged over ranks, are those of one."""
    own = batch.weight * shares.mean(dim=0)
    mean = batch.mean(own).detach() + (own - own.detach())
    # Where a share is 0 in this precision the logarithm would make the gradient NaN.
    entropy: Tensor = torch.special.entr(mean.clamp(min=torch.finfo(mean.dtype).tiny)).sum()
    return entropy
