"""CLC: images are contrasted with a queue, weighted by clusters that are kept equally large."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import record_function

from deepclust_ext import distributed
from deepclust_ext.losses import ContrastiveLoss
from deepclust_ext.methods.base import ClusterHeadMethod, OptimizerSettings
from deepclust_ext.methods.shared import InferenceNetwork, as_input, check_views, mlp, spread, update_average
from deepclust_ext.methods.whole_batch import WholeBatch
from deepclust_ext.ops import sinkhorn_knopp
from deepclust_ext.ops._checks import (
    check_divisor,
    check_factor,
    check_fraction,
    check_integer,
    check_positive,
    check_size,
)

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class CLC(ClusterHeadMethod):
    r"""Contrastive learning with consistent and equipartitioned clusters (CLC, arXiv 2306.05439).

    The paper's second version calls the method CDC, "Contrastive Representation Disentanglement for Clustering".

    A backbone with two heads represents an image as :math:`(z^c, z^n)`: the logits of its cluster, and a row that
    distinguishes it from other images. The exponential moving average of the whole network gives the keys :math:`(k^c,
    k^n)` of the other view. Both go into a queue, as the keys of MoCo v2 do. With

    .. math::
        p = softmax(z^c / \tau_p) \qquad q = SinkhornKnopp(k^c / \epsilon)

    where the clusters are equally large over the keys of batch and queue together, every anchor is contrasted with its
    other view and the queue by the logits

    .. math::
        logit_{ij} = \cos(z^n_i, k^n_j) / \tau + p_i \cdot q_j / \tau_c

    So negatives of the anchor's cluster, the hard ones, weigh more. Every image is an anchor twice, once in each view,
    and both keys enter the queue. An image's cluster is the largest entry of :math:`z^c`.

    Only the abstract of the paper was available. Temperatures, :math:`\epsilon` and the heads are this package's
    choice, and so is one addition, ``swap_weight`` times the swapped prediction :math:`-\sum_k q_k \log p_k` of SwAV
    (arXiv 2006.09882, equation 2). Without it the clusters represent only what :math:`z^n` does not, because the logit
    is a sum of both: accuracy is 0.52 instead of 0.96 on the digits (docs/clc.md). Published ACC: ImageNet-1k 53.4.

    With ``terms="instance"`` a step has the contrast of the rows alone, :math:`\cos(z^n_i, k^n_j) / \tau`. After a
    phase of it, clusters start from features that already distinguish images. ``terms="labels"`` adds the cross entropy
    of :math:`p` to pseudo-labels, in place of codes. A short phase of it starts the clusters with those of k-means on
    the rows, which helps because the head tends to keep its first clusters.

    The class vectors of the queue are not stored: in each step one Sinkhorn-Knopp computes them together with those of
    the batch. Before the queue is full, only the keys that it holds count; the very first step has no negatives.

    Args:
        backbone: Maps (B, C, H, W) to (B, ``feature_dim``).
        feature_dim: Width of the backbone's output.
        num_clusters: K, the width of the cluster head.
        hidden_dim: Hidden width of both heads.
        embedding_dim: Output width of the instance head.
        queue_size: Number of keys in the queue.
        momentum: Share of the old momentum network kept at each update; take less if an epoch has few steps.
        temperature: Tau, which divides the cosines of the rows.
        class_temperature: Tau_c, which divides the products of class vectors.
        cluster_temperature: Tau_p, which divides the logits of the clusters.
        epsilon: Smoothness of Sinkhorn-Knopp. Below ``cluster_temperature`` codes are sharper than assignments and make
            these sharper too; the smaller it is, the sooner.
        num_iters: Iterations of Sinkhorn-Knopp.
        swap_weight: Weight of the swapped prediction.
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
    terms = ("all", "instance", "labels")
    labelled_terms = frozenset({"labels"})
    default_optimizer = OptimizerSettings("adam", lr=1e-3)  # the paper's optimizer was not at hand
    matches_labels = True
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loss": ("loss", "contrastive", "swapped"),
        "confidence": ("confidence", "balance"),
        "entropy": ("code_entropy",),
        "clusters": ("used_clusters",),
        "spread": ("feature_spread",),
        "directions": ("effective_rank",),
    }
    key_queue: Tensor
    score_queue: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_clusters: int,
        *,
        hidden_dim: int = 2048,
        embedding_dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        class_temperature: float = 1.0,
        cluster_temperature: float = 1.0,
        epsilon: float = 0.8,
        num_iters: int = 3,
        swap_weight: float = 1.0,
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> None:
        super().__init__()
        ranks = self.set_ranks(gather_distributed, process_group)
        self.feature_dim = check_size(feature_dim, "feature_dim")
        self.num_clusters = check_size(num_clusters, "num_clusters")
        self.hidden_dim = check_size(hidden_dim, "hidden_dim")
        self.embedding_dim = check_size(embedding_dim, "embedding_dim")
        self.queue_size = check_size(queue_size, "queue_size")
        self.momentum = check_fraction(momentum, "momentum")
        self.temperature = check_divisor(temperature, "temperature")
        self.class_temperature = check_divisor(class_temperature, "class_temperature")
        self.cluster_temperature = check_divisor(cluster_temperature, "cluster_temperature")
        self.epsilon = check_positive(epsilon, "epsilon")
        self.num_iters = check_integer(num_iters, "num_iters", 1)
        self.swap_weight = check_factor(swap_weight, "swap_weight")
        self.online = _TwoHeads(backbone, feature_dim, hidden_dim, embedding_dim, num_clusters)
        self.average = copy.deepcopy(self.online).requires_grad_(False)
        self.contrastive = ContrastiveLoss(temperature, class_temperature=class_temperature, **ranks)
        self.register_buffer("key_queue", torch.zeros(queue_size, embedding_dim))
        self.register_buffer("score_queue", torch.zeros(queue_size, num_clusters))
        self.num_enqueued = 0

    def training_step(
        self,
        views: Sequence[Tensor],  # two of (B, C, H, W)
        pseudo_labels: Tensor | None = None,  # (B,) of terms "labels"
        index: Tensor | None = None,  # (B,) not used
        *,
        terms: str | None = None,
        epoch: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, (), and its terms with the statistics that show a collapse, all 0-dimensional.

        Raises:
            TypeError: If a view is not floating.
            ValueError: If there are not exactly two views of the same images, ``terms`` is unknown, or it needs
                ``pseudo_labels`` and there are none.
        """
        check_views(views, self.num_views)
        clusters_too = self.chosen_terms(terms, pseudo_labels, views) == "all"
        labels = pseudo_labels if terms == "labels" else None
        views = [as_input(self.online, view) for view in views]
        batch = self.whole_batch(views[0])
        with record_function("forward"):
            scores, queries = _rows(self.online, views)
            with torch.no_grad():
                key_scores, keys = _rows(self.average, views[::-1])
        with record_function("loss"):
            filled = self._filled()
            # A copy: the backward pass reads these negatives after the new keys have taken their places.
            negatives = self.key_queue[:filled].clone()
            if clusters_too:
                all_scores = torch.cat([key_scores, batch.part(self.score_queue[:filled])])
                codes = self._codes(all_scores)
                code, negative_codes = codes.split([len(keys), len(codes) - len(keys)])
                negative_codes = batch.all_parts(negative_codes)
                assignments = _shares(scores, self.cluster_temperature)
                # The logit is the one of the docstring; the queue is MoCo's (arXiv 1911.05722, equation 1).
                contrastive = self.contrastive(queries, keys, assignments, code, negatives, negative_codes)
                # SwAV's swapped prediction (arXiv 2006.09882, equation 2).
                swapped = cross_entropy(scores / self.cluster_temperature, code) * batch.weight
                loss = contrastive + self.swap_weight * swapped
                logged = {"loss": loss, "contrastive": contrastive, "swapped": swapped}
                logged["confidence"] = batch.weight * assignments.amax(dim=1).mean()
                logged |= code_statistics(all_scores, code, batch, filled)
            else:
                loss = contrastive = self.contrastive(queries, keys, queue=negatives)
                logged = {"contrastive": contrastive}
                if labels is not None:
                    swapped = cross_entropy(scores / self.cluster_temperature, labels.repeat(len(views))) * batch.weight
                    loss = contrastive + self.swap_weight * swapped
                    logged["swapped"] = swapped
                logged["loss"] = loss
            logged |= spread(queries, batch)
        self._enqueue(batch.rows(keys), batch.rows(key_scores))
        return loss, {name: term.detach() for name, term in logged.items()}

    def _codes(
        self,
        scores: Tensor,  # (N, K), a part of them on each rank
    ) -> Tensor:
        """Return codes (N, K) that are equally large over the scores of all ranks."""
        epsilon, num_iters, group = self.epsilon, self.num_iters, self.process_group
        if not self.gather_distributed:
            return sinkhorn_knopp(scores, epsilon=epsilon, num_iters=num_iters)
        codes: Tensor = distributed.sinkhorn_knopp(scores, epsilon=epsilon, num_iters=num_iters, process_group=group)
        return codes

    def _filled(self) -> int:
        """Return how many keys the queue holds."""
        return min(self.num_enqueued, len(self.key_queue))

    @property
    def num_enqueued(self) -> int:
        """How many keys the queue has ever taken in."""
        # Kept as a size: torch.compile makes one graph for all sizes, but one for each value of a global's integer.
        return self._enqueued.shape[0]

    @num_enqueued.setter
    def num_enqueued(self, value: int) -> None:
        self._enqueued = torch.empty(value, device="meta")

    @torch.no_grad()
    def _enqueue(
        self,
        keys: Tensor,  # (R, D)
        scores: Tensor,  # (R, K)
    ) -> None:
        size = len(self.key_queue)
        end = self.num_enqueued + len(keys)
        start = max(self.num_enqueued, end - size)
        slots = torch.arange(start, end, device=keys.device) % size
        self.key_queue[slots] = keys[-len(slots) :].to(self.key_queue.dtype)
        self.score_queue[slots] = scores[-len(slots) :].to(self.score_queue.dtype)
        self.num_enqueued = end

    def get_extra_state(self) -> Tensor:
        """Return how many keys the queue has ever taken in: a number on the host, so no step waits for the device."""
        return torch.tensor(self.num_enqueued, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take the number of keys from a checkpoint."""
        self.num_enqueued = int(state)

    def after_step(self, progress: float = 0.0) -> None:
        """Update the momentum network."""
        update_average(self.average, self.online, self.momentum)

    def inference_network(self) -> nn.Module:
        """Return the online network: rows (B, ``embedding_dim``), normalized, and assignments (B, K)."""
        online = self.online
        shares = nn.Sequential(online.cluster_head, _ClusterShares(self.cluster_temperature))
        return InferenceNetwork(online.backbone, online.instance_head, shares)

    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        """Return an explanation if the features are one point, or few clusters or none stand out; else None."""
        if terms["feature_spread"] < 0.01:
            return f"with a feature spread of {terms['feature_spread']:.2g} the features have collapsed to a point"
        if "balance" not in terms:  # of the instance loss alone, which leaves the clusters as they are
            return None
        if terms["balance"] < 0.1:
            return (
                f"{terms['used_clusters']:.0f} of {self.num_clusters} clusters lead in some row of scores, with a "
                f"balance of {terms['balance']:.2g}: few clusters take everything; a lower learning rate or more "
                f"iterations of Sinkhorn-Knopp keep the others alive"
            )
        highest = math.log(self.num_clusters)
        if terms["code_entropy"] > 0.99999 * highest:  # a healthy run begins at up to 0.9999 of it
            return (
                f"the codes have an entropy of {terms['code_entropy']:.4f} of at most {highest:.4f}, so all clusters "
                f"look alike; a smaller epsilon tells them apart"
            )
        return None


class _TwoHeads(nn.Module):
    """A backbone with a cluster head and an instance head."""

    def __init__(
        self, backbone: nn.Module, feature_dim: int, hidden_dim: int, embedding_dim: int, num_clusters: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.instance_head = mlp(feature_dim, hidden_dim, embedding_dim)
        # Small logits at first: clusters form slowly, along what both views have most in common, and not by chance.
        small = 0.2 / math.sqrt(hidden_dim)
        self.cluster_head = mlp(feature_dim, hidden_dim, num_clusters, final_std=small, final_bias=False)

    def forward(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> tuple[Tensor, Tensor]:
        """Return z^c (B, K) and z^n (B, D), not normalized."""
        features = self.backbone(images)
        return self.cluster_head(features), self.instance_head(features)


class _ClusterShares(nn.Module):
    """The last layer of the cluster head: from z^c to assignments."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self,
        scores: Tensor,  # (B, K)
    ) -> Tensor:
        """Return assignments (B, K)."""
        return _shares(scores, self.temperature)


def _shares(
    scores: Tensor,  # (B, K)
    temperature: float,
) -> Tensor:
    return (scores / temperature).softmax(dim=1)


def _rows(network: nn.Module, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return z^c and z^n of all views, one below the other; batch normalization sees one view at a time."""
    scores, rows = zip(*(network(view) for view in views), strict=True)
    return torch.cat(scores), torch.cat(rows)


@torch.no_grad()
def code_statistics(
    scores: Tensor,  # (N, K), a part of them on each rank
    code: Tensor,  # (B, K)
    batch: WholeBatch | None = None,
    queued: int = 0,
) -> dict[str, Tensor]:
    """Return the mean entropy of the codes, how many clusters lead in some row of scores, and how evenly they lead.

    A cluster leads in a row if its score is the largest. The balance is 0 if one cluster leads in every row and 1 if
    all lead equally often; clusters in excess of the rows do not count. It is computed from scores, because
    Sinkhorn-Knopp makes all codes even.

    Args:
        scores: Of batch and queue, of which each rank has a part.
        code: Of the batch.
        batch: Which the codes are of; None where they are all.
        queued: Scores of the queue, on all ranks together.
    """
    leaders = scores.argmax(dim=1)
    ones = torch.ones_like(leaders, dtype=torch.float32)
    counts = torch.zeros(scores.shape[1], dtype=torch.float32, device=scores.device).index_add_(0, leaders, ones)
    count, weight = len(scores), 1.0
    if batch is not None:
        counts, count, weight = batch.sum(counts), batch.count(code) + queued, batch.weight
    effective = torch.special.entr(counts / count).sum().exp()
    return {
        "code_entropy": weight * torch.special.entr(code.float()).sum(dim=1).mean(),
        "used_clusters": (counts > 0).float().sum(),
        "balance": (effective - 1) / max(min(count, scores.shape[1]) - 1, 1),
    }
