"""A trained method as one function that maps images to rows and clusters."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from deepclust_ext.inference.images import moved
from deepclust_ext.inference.loop import View, device_of, map_images
from deepclust_ext.methods.base import ClusterHeadMethod, ClusteringMethod
from deepclust_ext.reference.normalize import l2_normalize

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group

#: Of the softmax over cosines with the centers, to rank images by how clear their cluster is: cosines of two clusters
#: differ by tenths.
TEMPERATURE = 0.1


def center_shares(
    rows: Tensor,  # (B, D) unit rows
    centers: Tensor,  # (K, D) unit rows
) -> Tensor:
    """Return the shares (B, K) of clusters that have centers: softmax(cosines / 0.1)."""
    return (rows @ centers.T / TEMPERATURE).softmax(dim=1)


class Trained(nn.Module):
    """A trained method that maps images to rows and shares of clusters.

    The cluster of an image is its largest share. That share is its confidence, which shows how clear the image is; it
    is no calibrated probability.

    Args:
        method: The trained method, on its device.
        test_view: Maps a batch of images to the method's input; None for unchanged images.
        centers: (K, D), centers of spherical k-means on the method's rows. A method without a cluster head needs them:
            its shares are softmax(cosines with the centers / 0.1).

    Raises:
        ValueError: If the method has no cluster head and there are no centers.
    """

    centers: Tensor | None

    def __init__(self, method: ClusteringMethod, test_view: View | None = None, centers: Tensor | None = None) -> None:
        super().__init__()
        if centers is None and not isinstance(method, ClusterHeadMethod):
            raise ValueError(f"centers: expected those of k-means for {type(method).__name__}, got None")
        self.method, self.test_view = method, test_view
        unit = None if centers is None else l2_normalize(centers.float(), dim=1).to(device_of(method))
        self.register_buffer("centers", unit)
        self.eval()

    def forward(
        self,
        images: Any,  # (B, C, H, W), or where the test view takes them a list of (C, H, W), on any device
    ) -> tuple[Tensor, Tensor]:
        """Return a unit row (B, D) float32 for each image, and the shares (B, K) float32 of its clusters."""
        given: Any = moved(images, device_of(self.method))
        return self.of_views(given if self.test_view is None else self.test_view(given))

    def of_views(
        self,
        views: Tensor,  # (B, C, H, W), what the test view makes of images
    ) -> tuple[Tensor, Tensor]:
        """Return rows (B, D) and shares (B, K) like a call, for the output of the test view."""
        rows, *shares = (part.float() for part in self.method.outputs(views))
        return rows, shares[0] if self.centers is None else center_shares(rows, self.centers)

    def shares_of(
        self,
        rows: Tensor,  # (N, D) that this method gave
        *,
        batch_size: int = 512,
    ) -> Tensor:
        """Return the shares (N, K) of the clusters, by centers, for known rows, on the CPU."""
        assert self.centers is not None
        return torch.cat([center_shares(part.float(), self.centers).cpu() for part in rows.split(batch_size)])

    def infer(
        self,
        images: Dataset[Any],
        *,
        batch_size: int = 512,
        num_workers: int = 0,
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> tuple[Tensor, Tensor]:
        """Return rows (N, D) and shares (N, K) of all images of a data set, in its order, on the CPU.

        Args:
            images: Map-style, see :func:`deepclust_ext.inference.map_images`.
            batch_size: Images at a time.
            num_workers: Processes that load images.
            gather_distributed: Whether each rank takes some of the batches, and all get the results.
            process_group: These ranks; None for all.

        Raises:
            TypeError: As :func:`~deepclust_ext.inference.map_images`.
            ValueError: As :func:`~deepclust_ext.inference.map_images`.
        """
        rows, shares = map_images(
            lambda views: tuple(part.cpu() for part in self.of_views(views)),
            images,
            test_view=self.test_view,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device_of(self.method),
            progress="embedding",
            gather_distributed=gather_distributed,
            process_group=process_group,
        )
        return rows, shares
