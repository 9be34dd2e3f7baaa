"""PICI: a masked autoencoder whose class token tells images and clusters apart."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from deepclust_ext.backbones.masked_autoencoder import MaskedDecoder, VisionTransformer, random_masks
from deepclust_ext.losses import ClusterContrastiveLoss, ContrastiveLoss, MaskedPatchLoss, MatchedLabelLoss
from deepclust_ext.methods.base import ClusterHeadMethod, OptimizerSettings
from deepclust_ext.methods.shared import (
    InferenceNetwork,
    as_input,
    check_views,
    collapse_of_head,
    mlp,
    spread,
    usage,
)
from deepclust_ext.ops._checks import check_bool, check_divisor, check_factor, check_fraction, check_integer, check_size

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class PICI(ClusterHeadMethod):
    r"""Partial information clustering (arXiv 2401.13503): a masked autoencoder with two heads.

    A vision transformer sees some patches of two views of every image, one weak and one strong. Each view has its own
    mask. A decoder predicts the pixels of the other patches. An instance head and a cluster head work on the class
    token. The losses of the paper are

    * PISD, which predicts the whole from a part: :class:`~deepclust_ext.losses.MaskedPatchLoss`, mean of both views;
    * PICD, which makes both views agree: :class:`~deepclust_ext.losses.ContrastiveLoss` of the instance head's rows
      plus :class:`~deepclust_ext.losses.ClusterContrastiveLoss` of the cluster head's assignments;
    * CLI, which teaches the cluster head what the instance rows show: :class:`~deepclust_ext.losses.MatchedLabelLoss`,
      the cross entropy of the assignments to pseudo-labels, mean of both views. Pseudo-labels come from k-means on the
      instance rows; the trainer matches them over the whole data set to the clusters of the cluster head.

    A phase of the run chooses among them: ``terms="reconstruction"`` is PISD alone, ``terms="all"`` PICD + PISD, and
    ``terms="labels"`` PICD + CLI, for which the decoder does not run. Rows, clusters and pseudo-labels are those of
    whole images, without masks. An image's cluster is the largest entry of its assignment. The first batch below 4 K
    gives a RuntimeWarning.

    Numbers of equations here and in the losses are those of ``Manuscript.pdf`` in the authors' repository,
    https://github.com/Regan-Zhang/PICI. The stages are its section 3.4.

    Defaults are the paper's, with the network of
    :class:`~deepclust_ext.backbones.masked_autoencoder.VisionTransformer`. Published NMI / ACC / ARI: RSOD
    58.3 / 77.2 / 51.0, UC-Merced 68.1 / 63.4 / 49.2, SIRI-WHU 65.8 / 67.2 / 51.8, AID 80.0 / 74.8 / 66.3, D0-40
    73.1 / 56.8 / 50.0, Chaoyang 38.2 / 59.5 / 38.2 (images of 224 pixels, 1050 epochs, batch 96; of the best epoch,
    which labels choose).

    Args:
        backbone: A :class:`~deepclust_ext.backbones.masked_autoencoder.VisionTransformer`.
        feature_dim: Width of the backbone's tokens.
        num_clusters: K, the width of the cluster head.
        hidden_dim: Hidden width of both heads; None for ``feature_dim``.
        embedding_dim: Output width of the instance head.
        hidden_share: Share of the patches that the backbone does not see in training, rounded to a whole number of
            patches. At least one patch is seen and one hidden.
        decoder_width: Width of the decoder's tokens.
        decoder_depth: Number of the decoder's blocks.
        decoder_heads: Number of heads in each attention of the decoder.
        instance_temperature: Temperature of the instance loss.
        cluster_temperature: Temperature of the cluster loss.
        entropy_weight: Weight of the entropy term within the cluster loss, which favors clusters of equal size; take
            less than 1 if they are known to be unequal.
        checkpointing: Keep for the backward pass only what enters each block of encoder and decoder, and compute the
            rest a second time: less memory for the same loss and gradients.
        gather_distributed: Whether the batch is that of all ranks together, as
            :class:`~deepclust_ext.training.Trainer` shares it out. Loss and gradients are then to be averaged over the
            ranks, which gives those of one process with the whole batch.
        process_group: Which ranks; None for all.

    Raises:
        TypeError: If an argument is of the wrong type, or the backbone is no ``VisionTransformer``.
        ValueError: If a number is out of range.
    """

    num_views = 2
    uses_progress = False
    terms = ("all", "reconstruction", "labels")
    labelled_terms = frozenset({"labels"})
    matches_labels = True
    default_optimizer = OptimizerSettings("adam", lr=1e-4)  # at a constant rate
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loss": ("loss", "reconstruction", "instance", "cluster", "labels"),
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
        hidden_share: float = 0.5,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        instance_temperature: float = 0.5,
        cluster_temperature: float = 1.0,
        entropy_weight: float = 1.0,
        checkpointing: bool = False,
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
        self.hidden_share = check_fraction(hidden_share, "hidden_share")
        self.decoder_width = check_size(decoder_width, "decoder_width")
        self.decoder_depth = check_integer(decoder_depth, "decoder_depth", 1)
        self.decoder_heads = check_integer(decoder_heads, "decoder_heads", 1)
        self.instance_temperature = check_divisor(instance_temperature, "instance_temperature")
        self.cluster_temperature = check_divisor(cluster_temperature, "cluster_temperature")
        self.entropy_weight = check_factor(entropy_weight, "entropy_weight")
        self.checkpointing = check_bool(checkpointing, "checkpointing")
        if not isinstance(backbone, VisionTransformer):
            raise TypeError(
                "backbone: expected a VisionTransformer, whose encode leaves out patches, such as "
                f"load_backbone('vit', 224) gives, got {type(backbone).__name__}"
            )
        if feature_dim != backbone.width:
            raise ValueError(f"feature_dim: expected {backbone.width}, the backbone's width, got {feature_dim}")
        if backbone.num_patches < 2:
            raise ValueError(f"backbone: expected at least 2 patches, one of them to hide, got {backbone.num_patches}")
        self.num_kept = min(max(round((1 - hidden_share) * backbone.num_patches), 1), backbone.num_patches - 1)
        self.backbone = backbone
        backbone.transformer.checkpointing |= checkpointing
        try:
            self.decoder = MaskedDecoder(
                backbone.image_size,
                backbone.patch_size,
                backbone.width,
                decoder_width,
                decoder_depth,
                decoder_heads,
                channels=backbone.channels,
                checkpointing=checkpointing,
            )
        except ValueError as error:
            raise ValueError(f"decoder: {error}") from error
        self.instance_head = _head(feature_dim, hidden_dim, embedding_dim)
        self.cluster_head = nn.Sequential(*_head(feature_dim, hidden_dim, num_clusters), nn.Softmax(dim=1))
        self.patch_loss = MaskedPatchLoss(**ranks)
        self.instance_loss = ContrastiveLoss(instance_temperature, **ranks)
        self.cluster_loss = ClusterContrastiveLoss(cluster_temperature, entropy_weight, **ranks)
        self.label_loss = MatchedLabelLoss(**ranks)

    def training_step(
        self,
        views: Sequence[Tensor],  # two of (B, C, S, S): strong, weak
        pseudo_labels: Tensor | None = None,  # (B,) of terms "labels"
        index: Tensor | None = None,  # (B,) not used
        *,
        terms: str | None = None,
        epoch: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, (), and its terms with the statistics that show a collapse, all 0-dimensional.

        Masks are drawn from torch's global generator on the CPU.

        Raises:
            TypeError: If a view is not floating.
            ValueError: If there are not exactly two views of the same images and of the backbone's size, ``terms`` is
                unknown, or it needs ``pseudo_labels`` and there are none.
        """
        check_views(views, self.num_views)
        terms = self.chosen_terms(terms, pseudo_labels, views)
        if views[0].shape != views[1].shape:
            raise ValueError(f"views: expected one shape, got {tuple(views[0].shape)} and {tuple(views[1].shape)}")
        images = torch.cat([as_input(self.backbone, view) for view in views])
        batch = self.whole_batch(views[0])
        masks = random_masks(batch.count(images), self.backbone.num_patches, self.num_kept, device=images.device)
        keep, hidden = (batch.own(places, self.num_views) for places in masks)
        with record_function("forward"):
            if terms == "labels":
                features = self.backbone(images, keep)
            else:
                tokens = self.backbone.encode(images, keep)
                features, predicted = tokens[:, 0], self.decoder(tokens, keep, hidden)
            if terms != "reconstruction":
                rows, shares = self.instance_head(features), self.cluster_head(features)
        with record_function("loss"):
            parts: dict[str, Tensor] = {}
            statistics: dict[str, Tensor] = {}
            if terms != "labels":  # PISD, the paper's "partial information self-discrimination", equation 1
                parts["reconstruction"] = self.patch_loss(predicted, self.backbone.patches(images, hidden))
            if terms != "reconstruction":  # PICD, equation 2: at the level of instances, 6, and of clusters, 11
                (z_1, z_2), (c_1, c_2) = rows.chunk(2), shares.chunk(2)
                parts |= {"instance": self.instance_loss(z_1, z_2), "cluster": self.cluster_loss(c_1, c_2)}
                statistics = usage(c_1, batch) | spread(z_1, batch)
            if terms == "labels" and pseudo_labels is not None:  # CLI, "cross-level interaction", equation 16
                parts["labels"] = self.label_loss(shares, pseudo_labels.repeat(len(views)))
            loss = torch.stack(list(parts.values())).sum()
            logged = {"loss": loss} | parts | statistics
        return loss, {name: term.detach() for name, term in logged.items()}

    def inference_network(self) -> nn.Module:
        """Return backbone and heads, without masks: rows (B, ``embedding_dim``), normalized, and assignments (B, K)."""
        return InferenceNetwork(self.backbone, self.instance_head, self.cluster_head)

    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        """Return an explanation when the rows are one point or few clusters take everything, or None."""
        if "feature_spread" not in terms:  # of the reconstruction alone, which leaves the heads as they are
            return None
        return collapse_of_head(terms, self.num_clusters)


def _head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return linear, ReLU, linear, with weights by Xavier's uniform rule and biases 0."""
    head = mlp(in_dim, hidden_dim, out_dim, batch_norm=False)
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return head
