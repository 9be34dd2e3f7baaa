"""Prototype loss on the centroids of a batch, as ProPos and HaDis use it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deepclust_ext import distributed
from deepclust_ext.ops._checks import check_dtype, check_labels, check_size, check_temperature, check_tensor, plain
from deepclust_ext.reference.normalize import l2_normalize
from deepclust_ext.reference.temperature import positive_or_nan

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class PrototypeLoss(nn.Module):
    r"""Pull the two views' centroids of one cluster together, and push the centroids of different clusters apart.

    With :math:`\mu_q, \mu_k` the normalized means of the normalized rows of each cluster, the logits are :math:`\mu_q
    \mu_q^\top / \tau` with :math:`\mu_q \cdot \mu_k / \tau` on the diagonal. The loss is the mean cross entropy to the
    diagonal over the clusters that occur in the batch ("prototypical contrastive learning" of HaDis, arXiv 2401.14038).
    Rows whose label lies outside ``0 .. num_clusters - 1`` take no part.

    All shapes follow from the arguments, so nothing waits for the device. The loss is finite for empty clusters, and
    exactly 0 if at most one cluster occurs in the batch.

    Keep the temperature of 0.5, and use batches with several rows of each cluster: a centroid of one row is that row.

    Args:
        temperature: Divides the logits. A parameter of shape () is learned with the rest.
        gather_distributed: Whether centroids are those of the samples of all ranks. Ranks exchange the K sums of rows
            of both views. Every rank returns the loss of the whole batch. Under DistributedDataParallel, which takes
            the mean over the ranks, every parameter gets the gradient of that loss.
        process_group: The ranks, a ProcessGroup or a DeviceMesh of one dimension; all by default.

    Raises:
        TypeError: If ``temperature`` is neither a number nor a floating tensor.
        ValueError: If it is a number that is not above 0 or not finite.

    Example:
        >>> rows = torch.eye(2).repeat(3, 1)
        >>> labels = torch.tensor([0, 1]).repeat(3)
        >>> float(PrototypeLoss()(rows, rows, labels, 2))  # log(1 + exp(-2)): the centroids are at a right angle
        0.1269...
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.gather_distributed = distributed.check_ranks(gather_distributed, process_group)
        self.process_group = process_group

    def forward(
        self,
        query: Tensor,  # (B, D) student rows of one view
        key: Tensor,  # (B, D) teacher rows of the other view
        labels: Tensor,  # (B,) integer pseudo-labels
        num_clusters: int,
    ) -> Tensor:
        """Return the loss, (), in the dtype of ``query``; float16 and bfloat16 are computed in float32.

        Raises:
            ValueError: If a shape or device does not fit, ``num_clusters`` is below 1, or a learned temperature is not
                above 0. (On CUDA, where checking it would wait for the device, the loss is NaN instead.)
            TypeError: If an argument is no dense tensor, rows are of an unsupported dtype, or labels no integers.
        """
        _check(query, key, labels)
        num_clusters = check_size(num_clusters, "num_clusters")
        temperature = positive_or_nan(check_temperature(self.temperature, "temperature", query, "query"))
        # Labels beyond int64 become negative ones, which take no part either.
        labels = labels.to(torch.int64)
        wide = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            clusters = torch.arange(num_clusters, device=labels.device)
            members = (labels.unsqueeze(0) == clusters.unsqueeze(1)).to(wide)  # (K, B)
            sums = members @ l2_normalize(query.to(wide), dim=1), members @ l2_normalize(key.to(wide), dim=1)
            counts = members.sum(dim=1)
            if self.gather_distributed:
                everything = torch.cat([*sums, counts.unsqueeze(1)], dim=1)  # (K, 2D + 1)
                everything = distributed.sum_over_ranks(everything, self.process_group)
                *sums, counts = everything.split([query.shape[1], key.shape[1], 1], dim=1)
            # The mean and the sum differ by a factor that the normalization takes out again.
            centers, targets = (l2_normalize(each, dim=1) for each in sums)  # (K, D)
            positive = (centers * targets).sum(dim=1) / temperature  # (K,)
            logits = centers @ centers.T / temperature
            logits = torch.where(torch.eye(num_clusters, dtype=torch.bool, device=logits.device), positive, logits)
            present = counts.flatten() > 0  # (K,)
            # An empty cluster's own diagonal entry stays, so that its row is finite before it is left out.
            absent = ~present.unsqueeze(0) & ~torch.eye(num_clusters, dtype=torch.bool, device=logits.device)
            losses = logits.masked_fill(absent, float("-inf")).logsumexp(dim=1) - positive
            loss = torch.where(present, losses, 0).sum() / present.sum().clamp(min=1)
        return loss.to(query.dtype)

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return f"temperature={plain(self.temperature)}, gather_distributed={self.gather_distributed}"


def _check(
    query: Tensor,  # (B, D)
    key: Tensor,  # (B, D)
    labels: Tensor,  # (B,)
) -> None:
    for tensor, name in ((query, "query"), (key, "key"), (labels, "labels")):
        check_tensor(tensor, name)
    for tensor, name in ((query, "query"), (key, "key")):
        check_dtype(tensor, name)
    if query.dim() != 2:
        raise ValueError(f"query: expected shape (B, D), got {tuple(query.shape)}")
    if key.shape != query.shape:
        raise ValueError(f"key: expected the shape of query {tuple(query.shape)}, got {tuple(key.shape)}")
    if labels.shape != query.shape[:1]:
        raise ValueError(f"labels: expected shape ({query.shape[0]},), got {tuple(labels.shape)}")
    check_labels(labels, "labels")
    for tensor, name in ((key, "key"), (labels, "labels")):
        if tensor.device != query.device:
            raise ValueError(f"{name}: expected device {query.device} like query, got {tensor.device}")
