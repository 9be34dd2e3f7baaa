"""HaDis: diffused-sampling alignment, hardness-aware self-distillation and prototypes."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from torch.profiler import record_function

from deepclust_ext.losses import HSDLoss, PrototypeLoss
from deepclust_ext.methods.base import ClusteringMethod
from deepclust_ext.methods.shared import check_views, evaluation, mlp, spread, update_average
from deepclust_ext.ops import diffused_neighbor_gather


class HaDis(ClusteringMethod):
    r"""Deep clustering by hardness-aware self-distillation (arXiv 2401.14038).

    A student (backbone, projector, predictor) learns from an exponential moving average of its backbone and projector,
    the teacher. For one direction, with student row :math:`z` of one view, teacher row :math:`k` of the other view and
    :math:`q = \mathrm{predictor}(z + \sigma\epsilon)`, the three losses of the paper are

    * DSA, diffused-sampling alignment: :math:`-2 \cos(q, k)`, in the self-plus-noise form of the authors' code;
    * HSD: :class:`~deepclust_ext.losses.HSDLoss` with teacher :math:`k` and student :math:`q`;
    * prototypes: :class:`~deepclust_ext.losses.PrototypeLoss` on batch centroids by pseudo-label.

    The total is the mean over both directions of DSA + ``hsd_weight`` x HSD + ``prototype_weight`` x prototypes. During
    warm-up there are no pseudo-labels: pass None, and noise, neighbors and prototype loss are off. Defaults are the
    paper's for CIFAR-10. The noise is :func:`deepclust_ext.diffused_neighbor_gather` with no neighbors.

    With a ``bank_size`` DSA aligns :math:`q = \mathrm{predictor}(z)` with a sample near :math:`k` instead: of
    the ``num_neighbors`` images whose entries in a bank are nearest to :math:`k`, its own left out, one is drawn, and
    noise added. The sample is the teacher's side because a bank has no gradient for the student's. The bank has an
    entry for every image, the normalised mean of the teacher's unit rows of both views when the image was last seen;
    it is part of the state, and needs ``index``, as the trainer passes it.

    Published NMI / ACC / ARI: CIFAR-10 86.9 / 93.0 / 86.2, CIFAR-20 56.8 / 56.3 / 41.1, STL-10 69.6 / 73.9 / 62.3,
    ImageNet-10 88.4 / 94.9 / 89.2, ImageNet-Dogs 49.6 / 55.0 / 37.6 (ResNet, 1000 epochs).

    Difference from the authors' code: it runs the predictor twice per view, once for DSA and once for the others, with
    noise of its own and an update of its batch statistics each. Here it runs once, and all three losses see the same
    rows, unless ``double_pass`` is set.

    Args:
        backbone: Maps (B, C, H, W) to (B, ``feature_dim``).
        feature_dim: Width of the backbone's output.
        num_clusters: K, of pseudo-labels and final clusters.
        hidden_dim: Hidden width of projector and predictor.
        embedding_dim: Output width of projector and predictor.
        momentum: Share of the old teacher kept at each update.
        noise_std: The sigma of DSA.
        temperature: Temperature of HSD and of the prototype loss.
        hsd_weight: Weight of HSD.
        prototype_weight: Lambda; the paper takes 0.05 for CIFAR-20 and ImageNet-10.
        bank_size: How many images the data set has, for DSA with neighbors; 0 for DSA with the row itself.
        num_neighbors: Neighbors that DSA draws from.
        neighbor_temperature: Of their probabilities, a softmax of cosines.
        double_pass: Run the predictor twice, as the authors' code does.

    Raises:
        ValueError: If ``momentum`` lies outside [0, 1].
    """

    needs_pseudo_labels = True
    bank: Tensor
    in_bank: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_clusters: int,
        *,
        hidden_dim: int = 4096,
        embedding_dim: int = 256,
        momentum: float = 0.996,
        noise_std: float = 0.001,
        temperature: float = 0.5,
        hsd_weight: float = 1.0,
        prototype_weight: float = 0.1,
        bank_size: int = 0,
        num_neighbors: int = 10,
        neighbor_temperature: float = 0.1,
        double_pass: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
        self.num_clusters = num_clusters
        self.momentum = momentum
        self.noise_std = noise_std
        self.hsd_weight = hsd_weight
        self.prototype_weight = prototype_weight
        self.num_neighbors = num_neighbors
        self.neighbor_temperature = neighbor_temperature
        self.double_pass = double_pass
        self.student = nn.Sequential(backbone, mlp(feature_dim, hidden_dim, embedding_dim))
        self.predictor = mlp(embedding_dim, hidden_dim, embedding_dim, final_std=0.01)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.hsd = HSDLoss(temperature=temperature, return_stats=True)
        self.prototypes = PrototypeLoss(temperature=temperature)
        self.register_buffer("bank", torch.zeros(bank_size, embedding_dim))
        self.register_buffer("in_bank", torch.zeros(bank_size, dtype=torch.bool))

    def training_step(
        self,
        views: Sequence[Tensor],  # two of (B, C, H, W)
        pseudo_labels: Tensor | None = None,  # (B,) None during warm-up
        index: Tensor | None = None,  # (B,) which images of the data set these are; for neighbors only
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, (), and its terms with the statistics that show a collapse, all 0-dimensional.

        Raises:
            ValueError: If there are not exactly two views, or neighbors are asked for without ``index``.
        """
        check_views(views, 2)
        has_bank = len(self.bank) > 0
        if has_bank and index is None:
            raise ValueError("index: expected the places of the images in the data set, got None")
        warm_up = pseudo_labels is None
        with record_function("forward"):
            embeddings = [self.student(view) for view in views]
            noise_std = 0.0 if warm_up or has_bank else self.noise_std
            aligned = [self.predictor(with_noise(embedding, noise_std)) for embedding in embeddings]
            distilled = aligned
            if self.double_pass:
                distilled = [self.predictor(with_noise(embedding, noise_std)) for embedding in embeddings]
            with torch.no_grad():
                keys = [self.teacher(view) for view in views]
        with record_function("loss"):
            targets = keys
            if has_bank and index is not None:
                index = index.to(keys[0].device)
                if not warm_up:
                    targets = [self._neighbors(key, index) for key in keys]
                self._remember(keys, index)
            pairs = ((0, 1), (1, 0))  # of a student's view and a teacher's
            dsa = [-2 * cosine_similarity(aligned[i], targets[j]).mean() for i, j in pairs]
            others = [self._direction(distilled[i], keys[j], pseudo_labels) for i, j in pairs]
            terms = {"dsa": (dsa[0] + dsa[1]) / 2}
            terms |= {name: (others[0][name] + others[1][name]) / 2 for name in others[0]}
            loss = terms["dsa"] + self.hsd_weight * terms["hsd"]
            if not warm_up:
                loss = loss + self.prototype_weight * terms["prototype"]
            terms = {"loss": loss} | terms | spread(keys[0])
        return loss, {name: term.detach() for name, term in terms.items()}

    def _direction(
        self,
        query: Tensor,  # (B, D)
        key: Tensor,  # (B, D)
        pseudo_labels: Tensor | None,  # (B,)
    ) -> dict[str, Tensor]:
        hsd, stats = self.hsd(key, query)
        terms: dict[str, Tensor] = {"hsd": hsd}
        if pseudo_labels is not None:
            terms["prototype"] = self.prototypes(query, key, pseudo_labels, self.num_clusters)
        terms.update(stats._asdict())
        return terms

    @torch.no_grad()
    def _neighbors(
        self,
        keys: Tensor,  # (B, D)
        index: Tensor,  # (B,)
    ) -> Tensor:
        """Return a bank's row near each key with noise (B, D), the key itself with noise where the bank is empty."""
        samples, _ = diffused_neighbor_gather(
            keys,
            self.bank.to(keys.dtype),
            num_neighbors=self.num_neighbors,
            temperature=self.neighbor_temperature,
            noise_std=self.noise_std,
            exclude=index,
            valid=self.in_bank,
        )
        return samples.squeeze(1)

    @torch.no_grad()
    def _remember(
        self,
        keys: Sequence[Tensor],  # two of (B, D)
        index: Tensor,  # (B,)
    ) -> None:
        rows = normalize(normalize(keys[0], dim=1) + normalize(keys[1], dim=1), dim=1)
        self.bank[index] = rows.to(self.bank.dtype)
        self.in_bank[index] = True

    def after_step(self) -> None:
        """Move the teacher towards the student; its batch-norm statistics are its own."""
        update_average(self.teacher, self.student, self.momentum)

    def embed(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return the teacher's normalised rows (B, ``embedding_dim``) in evaluation mode."""
        with evaluation(self.teacher):
            return normalize(self.teacher(images), dim=1)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the student's parameters at ``lr`` and the predictor's at ten times ``lr``."""
        return [
            {"params": list(self.student.parameters()), "lr": lr},
            {"params": list(self.predictor.parameters()), "lr": 10 * lr},
        ]

    def optimizer(self, batch_size: int, base_lr: float = 0.05, weight_decay: float = 5e-4) -> torch.optim.SGD:
        """Return the paper's SGD: learning rate ``base_lr`` x ``batch_size`` / 256, momentum 0.9."""
        groups = self.parameter_groups(base_lr * batch_size / 256)
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=weight_decay)

    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        """Return an explanation when HSD sits at ln 2 with no weight left, or None."""
        idle = min(terms["zero_negative_weight"], terms["zero_positive_weight"]) > 0.99
        if not idle or abs(terms["hsd"] - math.log(2)) > 1e-3:
            return None
        verdict = "collapsed to a point" if terms["feature_spread"] < 0.01 else "converged, student equal to teacher"
        return (
            f"the HSD loss is {terms['hsd']:.4f}, which is ln 2, and hardly any anchor has a weight, so it gives no "
            f"gradient; with a feature spread of {terms['feature_spread']:.2g} the features have most likely {verdict}"
        )


def with_noise(
    rows: Tensor,  # (B, D)
    noise_std: float,
) -> Tensor:
    """Return rows (B, D) with normal noise."""
    return diffused_neighbor_gather(rows, rows, num_neighbors=0, noise_std=noise_std)[0].squeeze(1)
