"""SACC: contrast between images and between clusters, on two weak views and a strong one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from deepclust_ext.losses import ClusterContrastiveLoss, ContrastiveLoss, MatchedLabelLoss
from deepclust_ext.methods.base import ClusterHeadMethod, OptimizerSettings
from deepclust_ext.methods.shared import InferenceNetwork, as_input, check_views, collapse_of_head, mlp, spread, usage
from deepclust_ext.ops._checks import check_divisor, check_factor, check_size

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class SACC(ClusterHeadMethod):
    r"""Strongly augmented contrastive clustering (arXiv 2206.00380; Pattern Recognition 139, 2023).

    One backbone and two heads see three views of every image: two weak ones :math:`w_1, w_2` and a strong one
    :math:`s`. The instance head gives rows for :class:`~deepclust_ext.losses.ContrastiveLoss`, the cluster head gives
    assignments for :class:`~deepclust_ext.losses.ClusterContrastiveLoss`; the total is

    .. math::
        inst(w_1, w_2) + inst(w_2, s) + \sigma \, (clu(w_1, w_2) + clu(w_1, s) + clu(w_2, s))

    With ``terms="instance"`` a step has only the first two, as for STL-10's unlabeled images. ``terms="labels"``, which
    is not in the paper, replaces the cluster losses by the mean cross entropy of the assignments to pseudo-labels. A
    short phase of it starts the cluster head with the clusters that k-means finds in the rows. An image's cluster is
    the largest entry of its assignment. The first batch below 4 K gives a RuntimeWarning.

    The authors' figure of the network, in https://github.com/dengxiaozhi/SACC, shows the pairs of both losses. Defaults
    are the paper's. Published NMI / ACC / ARI: CIFAR-10 76.5 / 85.1 / 72.4, CIFAR-20 44.8 / 44.3 / 28.2,
    STL-10 69.1 / 75.9 / 62.6, ImageNet-10 87.7 / 90.5 / 84.3, ImageNet-Dogs 45.5 / 43.7 / 28.5 (ResNet-34, images of
    224 pixels, 1000 epochs, batch 200).

    Args:
        backbone: Maps (B, C, H, W) to (B, ``feature_dim``).
        feature_dim: Width of the backbone's output.
        num_clusters: K, the width of the cluster head.
        hidden_dim: Hidden width of both heads; None for ``feature_dim``.
        embedding_dim: Output width of the instance head.
        instance_temperature: Temperature of the instance loss.
        cluster_temperature: Temperature of the cluster loss.
        cluster_weight: Sigma; the paper takes 0.5 for CIFAR-100.
        entropy_weight: Weight of the entropy term within the cluster loss, which favors clusters of equal size; take
            less than 1 if they are known to be unequal.
        gather_distributed: Whether the batch is that of all ranks together, as
            :class:`~deepclust_ext.training.Trainer` shares it out. Loss and gradients are then to be averaged over the
            ranks, which gives those of one process with the whole batch.
        process_group: Which ranks; None for all.
    """

    num_views = 3
    uses_progress = False
    terms = ("all", "instance", "labels")
    labelled_terms = frozenset({"labels"})
    default_optimizer = OptimizerSettings("adam", lr=3e-4)  # at a constant rate
    matches_labels = True
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loss": ("loss", "instance", "cluster"),
        "clusters": ("effective_clusters",),
        "confidence": ("confidence",),
        "spread": ("feature_spread",),
        "directions": ("effective_rank",),
    }

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_clusters: int,
        *,
        hidden_dim: int | None = None,
        embedding_dim: int = 128,
        instance_temperature: float = 0.5,
        cluster_temperature: float = 1.0,
        cluster_weight: float = 1.0,
        entropy_weight: float = 1.0,
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> None:
        super().__init__()
        ranks = self.set_ranks(gather_distributed, process_group)
        hidden_dim = feature_dim if hidden_dim is None else hidden_dim
        self.feature_dim = check_size(feature_dim, "feature_dim")
        self.num_clusters = check_size(num_clusters, "num_clusters")
        self.hidden_dim = check_size(hidden_dim, "hidden_dim")
        self.embedding_dim = check_size(embedding_dim, "embedding_dim")
        self.instance_temperature = check_divisor(instance_temperature, "instance_temperature")
        self.cluster_temperature = check_divisor(cluster_temperature, "cluster_temperature")
        self.cluster_weight = check_factor(cluster_weight, "cluster_weight")
        self.entropy_weight = check_factor(entropy_weight, "entropy_weight")
        self.backbone = backbone
        self.instance_head = mlp(feature_dim, hidden_dim, embedding_dim, batch_norm=False)
        cluster_head = mlp(feature_dim, hidden_dim, num_clusters, batch_norm=False)
        self.cluster_head = nn.Sequential(*cluster_head, nn.Softmax(dim=1))
        self.instance_loss = ContrastiveLoss(instance_temperature, **ranks)
        self.cluster_loss = ClusterContrastiveLoss(cluster_temperature, entropy_weight, **ranks)
        self.label_loss = MatchedLabelLoss(**ranks)

    def training_step(
        self,
        views: Sequence[Tensor],  # three of (B, C, H, W): weak, weak, strong
        pseudo_labels: Tensor | None = None,  # (B,) of terms "labels"
        index: Tensor | None = None,  # (B,) not used
        *,
        terms: str | None = None,
        epoch: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, (), and its terms with the statistics that show a collapse, all 0-dimensional.

        Raises:
            TypeError: If a view is not floating.
            ValueError: If there are not exactly three views of the same images, ``terms`` is unknown, or it needs
                ``pseudo_labels`` and there are none.
        """
        check_views(views, self.num_views)
        terms = self.chosen_terms(terms, pseudo_labels, views)
        batch = self.whole_batch(views[0])
        with record_function("forward"):
            features = [self.backbone(as_input(self.backbone, view)) for view in views]
            z_1, z_2, z_s = map(self.instance_head, features)
            c_1, c_2, c_s = map(self.cluster_head, features)
        with record_function("loss"):
            # The pairs of views are those of L_instance and L_cluster in the authors' figure of the network, the losses
            # those of Contrastive Clustering (arXiv 2009.09687).
            loss = instance = self.instance_loss(z_1, z_2) + self.instance_loss(z_2, z_s)
            logged = {"instance": instance} | usage(c_1, batch) | spread(z_1, batch)
            if terms == "all":
                cluster = self.cluster_loss(c_1, c_2) + self.cluster_loss(c_1, c_s) + self.cluster_loss(c_2, c_s)
            elif terms == "labels" and pseudo_labels is not None:
                labels = [self.label_loss(shares, pseudo_labels) for shares in (c_1, c_2, c_s)]
                cluster = torch.stack(labels).mean()
            if terms != "instance":
                loss = instance + self.cluster_weight * cluster
                logged["cluster"] = cluster
            logged["loss"] = loss
        return loss, {name: term.detach() for name, term in logged.items()}

    def inference_network(self) -> nn.Module:
        """Return the backbone with both heads: rows (B, ``embedding_dim``), normalized, and assignments (B, K)."""
        return InferenceNetwork(self.backbone, self.instance_head, self.cluster_head)

    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        """Return an explanation when the features are one point or few clusters take everything, or None."""
        return collapse_of_head(terms, self.num_clusters)
