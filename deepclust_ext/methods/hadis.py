"""HaDis: diffused-sampling alignment, hardness-aware self-distillation and prototypes."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.profiler import record_function

from deepclust_ext.losses import HSDLoss, PrototypeLoss
from deepclust_ext.methods.base import ClusteringMethod, OptimizerSettings
from deepclust_ext.methods.shared import (
    InferenceNetwork,
    as_input,
    check_views,
    mlp,
    rising_momentum,
    spread,
    update_average,
)
from deepclust_ext.methods.whole_batch import WholeBatch
from deepclust_ext.ops import diffused_neighbor_gather
from deepclust_ext.ops._checks import (
    check_bool,
    check_divisor,
    check_factor,
    check_fraction,
    check_integer,
    check_non_negative,
    check_positive,
    check_size,
)
from deepclust_ext.ops.nearest_neighbors import MAX_NEIGHBORS
from deepclust_ext.reference.normalize import l2_normalize

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class HaDis(ClusteringMethod):
    r"""Deep clustering by hardness-aware self-distillation (arXiv 2401.14038).

    A student (backbone, projector, predictor) learns from a teacher, the exponential moving average of its backbone and
    projector. For one direction, let :math:`q` be the student's projected row of one view, :math:`k` the teacher's row
    of the other view, and :math:`p = \mathrm{predictor}(q + \sigma\epsilon)`. The three losses of the paper are

    * DSA, diffused-sampling alignment: :math:`-2 \cos(p, k)`, in the self-plus-noise form of the authors' code;
    * HSD: :class:`~deepclust_ext.losses.HSDLoss` with teacher :math:`k` and student :math:`p`;
    * prototypes: :class:`~deepclust_ext.losses.PrototypeLoss` of :math:`q` (before noise and predictor) and :math:`k`,
      on the centroids of each pseudo-label in the batch.

    The total is the mean over both directions of DSA + ``hsd_weight`` x HSD + ``prototype_weight`` x prototypes. During
    warm-up, ``terms="warmup"``, there are no pseudo-labels: noise, neighbors and prototype loss are off. Defaults are
    the paper's for CIFAR-10. The noise is :func:`deepclust_ext.diffused_neighbor_gather` with no neighbors. Both linear
    layers of the predictor begin with weights N(0, 0.01) and biases 0; the size of the first steps depends on this.

    With a ``bank_size`` DSA aligns :math:`p = \mathrm{predictor}(q)` with a sample near :math:`k` instead. It is drawn
    from the ``num_neighbors`` entries of a bank that are nearest to :math:`k`, except for the image's own, and noise is
    added. The sample replaces the teacher's row, because entries of the bank give the student no gradient. The bank has
    an entry for every image: the normalized mean of the teacher's unit rows of both views, when the image was last
    seen. It is part of the state, and needs ``index``, which the trainer passes.

    Published NMI / ACC / ARI: CIFAR-10 86.9 / 93.0 / 86.2, CIFAR-20 56.8 / 56.3 / 41.1, STL-10 69.6 / 73.9 / 62.3,
    ImageNet-10 88.4 / 94.9 / 89.2, ImageNet-Dogs 49.6 / 55.0 / 37.6 (ResNet, 1000 epochs).

    Args:
        backbone: Maps (B, C, H, W) to (B, ``feature_dim``).
        feature_dim: Width of the backbone's output.
        num_clusters: K, the number of pseudo-labels and of final clusters.
        hidden_dim: Hidden width of projector and predictor.
        embedding_dim: Output width of projector and predictor.
        momentum: Share of the old teacher kept at each update.
        momentum_rises: Whether that share rises to 1 over the run, as the authors do for CIFAR-20; see
            :func:`~deepclust_ext.methods.shared.rising_momentum`.
        noise_std: Standard deviation sigma of the noise in DSA.
        temperature: Temperature of HSD and of the prototype loss.
        hsd_weight: Weight of HSD.
        prototype_weight: Lambda; the paper takes 0.05 for CIFAR-20 and ImageNet-10.
        predictor_lr_scale: The predictor's learning rate, as a multiple of the others'.
        bank_size: Number of images in the data set, for DSA with neighbors; 0 for DSA with the row itself.
        num_neighbors: Number of neighbors that DSA draws from.
        neighbor_temperature: Temperature of their probabilities, a softmax of cosines.
        gather_distributed: Whether the batch is that of all ranks together, as
            :class:`~deepclust_ext.training.Trainer` shares it out. Loss and gradients are then to be averaged over the
            ranks, which gives those of one process with the whole batch.
        process_group: Which ranks; None for all.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range.
    """

    num_views = 2
    terms = ("all", "warmup")
    labelled_terms = frozenset({"all"})
    default_optimizer = OptimizerSettings("sgd", lr=0.05, lr_batch_size=256, momentum=0.9, weight_decay=5e-4)
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loss": ("loss", "dsa", "hsd", "prototype"),
        "share of the anchors": ("zero_negative_weight", "zero_positive_weight", "no_negative"),
        "distance": ("mean_positive_distance", "mean_negative_distance"),
        "spread": ("feature_spread",),
        "directions": ("effective_rank",),
    }
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
        momentum_rises: bool = False,
        noise_std: float = 0.001,
        temperature: float = 0.5,
        hsd_weight: float = 1.0,
        prototype_weight: float = 0.1,
        predictor_lr_scale: float = 10.0,
        bank_size: int = 0,
        num_neighbors: int = 10,
        neighbor_temperature: float = 0.1,
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> None:
        super().__init__()
        ranks = self.set_ranks(gather_distributed, process_group)
        self.feature_dim = check_size(feature_dim, "feature_dim")
        self.num_clusters = check_size(num_clusters, "num_clusters")
        self.hidden_dim = check_size(hidden_dim, "hidden_dim")
        self.embedding_dim = check_size(embedding_dim, "embedding_dim")
        self.momentum = check_fraction(momentum, "momentum")
        self.momentum_rises = self.uses_progress = check_bool(momentum_rises, "momentum_rises")
        self.noise_std = check_factor(noise_std, "noise_std")
        self.temperature = check_divisor(temperature, "temperature")
        self.hsd_weight = check_factor(hsd_weight, "hsd_weight")
        self.prototype_weight = check_factor(prototype_weight, "prototype_weight")
        self.predictor_lr_scale = check_non_negative(predictor_lr_scale, "predictor_lr_scale")
        self.bank_size = check_size(bank_size, "bank_size", 0)
        self.num_neighbors = check_integer(num_neighbors, "num_neighbors", 1, MAX_NEIGHBORS)
        self.neighbor_temperature = check_positive(neighbor_temperature, "neighbor_temperature")
        self.student = nn.Sequential(backbone, mlp(feature_dim, hidden_dim, embedding_dim))
        self.predictor = predictor(embedding_dim, hidden_dim)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.hsd = HSDLoss(temperature=temperature, return_stats=True, **ranks)
        self.prototypes = PrototypeLoss(temperature=temperature, **ranks)
        self.register_buffer("bank", torch.zeros(bank_size, embedding_dim))
        self.register_buffer("in_bank", torch.zeros(bank_size, dtype=torch.bool))

    def training_step(
        self,
        views: Sequence[Tensor],  # two of (B, C, H, W)
        pseudo_labels: Tensor | None = None,  # (B,) of all terms
        index: Tensor | None = None,  # (B,) which images of the data set these are; for neighbors only
        *,
        terms: str | None = None,
        epoch: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, (), and its terms with the statistics that show a collapse, all 0-dimensional.

        Raises:
            TypeError: If a view is not floating.
            ValueError: If there are not exactly two views of the same images, ``terms`` is unknown, or
                ``pseudo_labels`` or, with a bank, ``index`` are missing.
        """
        check_views(views, self.num_views)
        warm_up = self.chosen_terms(terms, pseudo_labels, views) == "warmup"
        has_bank = len(self.bank) > 0
        if has_bank and index is None:
            raise ValueError("index: expected the places of the images in the data set, got None")
        views = [as_input(self.student, view) for view in views]
        batch = self.whole_batch(views[0])
        with record_function("forward"):
            projected = [self.student(view) for view in views]
            noise_std = 0.0 if warm_up or has_bank else self.noise_std
            predicted = [self.predictor(with_noise(rows, noise_std, batch)) for rows in projected]
            with torch.no_grad():
                keys = [self.teacher(view) for view in views]
        with record_function("loss"):
            targets = keys
            if has_bank and index is not None:
                index = index.to(keys[0].device)
                if not warm_up:
                    targets = [self._neighbors(key, index, batch) for key in keys]
                self._remember(keys, index, batch)
            labels = None if warm_up else pseudo_labels
            # Both directions: a student's view and the other view of the teacher.
            first, second = (
                self._direction(projected[i], predicted[i], targets[j], keys[j], labels, batch)
                for i, j in ((0, 1), (1, 0))
            )
            means = {name: (first[name] + second[name]) / 2 for name in first}
            loss = means["dsa"] + self.hsd_weight * means["hsd"]
            if not warm_up:
                loss = loss + self.prototype_weight * means["prototype"]
            logged = {"loss": loss} | means | spread(keys[0], batch)
        return loss, {name: term.detach() for name, term in logged.items()}

    def _direction(
        self,
        projected: Tensor,  # (B, D) the student's
        predicted: Tensor,  # (B, D) the student's
        target: Tensor,  # (B, D) what DSA aligns with
        key: Tensor,  # (B, D) the teacher's
        pseudo_labels: Tensor | None,  # (B,)
        batch: WholeBatch,
    ) -> dict[str, Tensor]:
        """Return the losses and HSD's statistics of one direction."""
        # HSD, the paper's "hardness-aware self-distillation".
        hsd, stats = self.hsd(key, predicted)
        # DSA, its "diffused sampling alignment".
        dsa = -2 * cosine_similarity(predicted, target).mean() * batch.weight
        terms: dict[str, Tensor] = {"dsa": dsa, "hsd": hsd}
        if pseudo_labels is not None:  # its "prototypical contrastive learning"
            terms["prototype"] = self.prototypes(projected, key, pseudo_labels, self.num_clusters)
        terms.update(stats._asdict())
        return terms

    @torch.no_grad()
    def _neighbors(
        self,
        keys: Tensor,  # (B, D)
        index: Tensor,  # (B,)
        batch: WholeBatch,
    ) -> Tensor:
        """Return a row of the bank near each key, plus noise (B, D); the key itself plus noise if the bank is empty."""
        samples, _ = diffused_neighbor_gather(
            batch.placed(keys),
            self.bank.to(keys.dtype),
            num_neighbors=self.num_neighbors,
            temperature=self.neighbor_temperature,
            noise_std=self.noise_std,
            exclude=batch.placed(index),
            valid=self.in_bank,
        )
        return batch.own(samples.squeeze(1))

    @torch.no_grad()
    def _remember(
        self,
        keys: Sequence[Tensor],  # two of (B, D)
        index: Tensor,  # (B,)
        batch: WholeBatch,
    ) -> None:
        rows = l2_normalize(l2_normalize(keys[0], dim=1) + l2_normalize(keys[1], dim=1), dim=1)
        index = batch.rows(index)
        self.bank[index] = batch.rows(rows).to(self.bank.dtype)
        self.in_bank[index] = True

    def check_data(self, sizes: Mapping[str, int]) -> None:
        """Require that a bank has an entry for every image, and that there is no other data set to mix up with it.

        Raises:
            ValueError: If there is an image without an entry, or there are more clusters than images.
        """
        super().check_data(sizes)
        if 0 < self.bank_size < sizes["images"]:
            raise ValueError(
                f"bank_size: expected at least {sizes['images']}, the number of images, or 0, got {self.bank_size}"
            )
        if self.bank_size and len(sizes) > 1:
            others = ", ".join(name for name in sizes if name != "images")
            raise ValueError(f"bank_size: expected 0 where phases pass through {others} too, got {self.bank_size}")

    def after_step(self, progress: float = 0.0) -> None:
        """Move the teacher towards the student, except for its batch-norm statistics."""
        momentum = rising_momentum(self.momentum, progress) if self.momentum_rises else self.momentum
        update_average(self.teacher, self.student, momentum)

    def inference_network(self) -> nn.Module:
        """Return the teacher, whose rows (B, ``embedding_dim``) are normalized."""
        return InferenceNetwork(*self.teacher)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the student's parameters at ``lr`` and the predictor's at ``predictor_lr_scale`` times ``lr``."""
        return [
            {"params": list(self.student.parameters()), "lr": lr},
            {"params": list(self.predictor.parameters()), "lr": self.predictor_lr_scale * lr},
        ]

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


def predictor(dim: int, hidden_dim: int) -> nn.Sequential:
    """Return an MLP whose linear layers both begin with weights N(0, 0.01) and biases 0, as the authors' does."""
    layers = mlp(dim, hidden_dim, dim)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    return layers


def with_noise(
    rows: Tensor,  # (B, D)
    noise_std: float,
    batch: WholeBatch | None = None,
) -> Tensor:
    """Return rows (B, D) with normal noise, drawn by their place in the batch of all ranks."""
    placed = rows if batch is None else batch.placed(rows)
    noisy = diffused_neighbor_gather(placed, placed, num_neighbors=0, noise_std=noise_std)[0].squeeze(1)
    return noisy if batch is None else batch.own(noisy)
