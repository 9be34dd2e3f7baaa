"""Reconstruction loss of masked patches, as MAE and PICI use it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from deepclust_ext.ops._checks import SUPPORTED_DTYPES, result_dtype

EPS = 1e-6
#: Above it a patch is scaled down, so that no sum of squares overflows.
LARGE = 2.0**40


class MaskedPatchLoss(nn.Module):
    r"""Mean squared error of predicted patches, each compared with the patch less its mean, over its deviation.

    For the values :math:`x_{ij}` of masked patch :math:`i`, with mean :math:`\mu_i` and unbiased variance
    :math:`\sigma^2_i`, and their predictions :math:`y_{ij}`, the loss is the mean over all :math:`i, j` of

    .. math::
        \Big( y_{ij} - \frac{x_{ij} - \mu_i}{\sqrt{\sigma^2_i + 10^{-6}}} \Big)^2

    It is for the masked patches alone: what the network saw must not be among the rows. A patch of one color has zeros
    to be predicted. In PICI this is the partial information self-discrimination (PISD), of images as the network gets
    them, normalized by the mean and deviation of the data set.

    Give images as the network gets them, and patches large enough to have structure: 16 pixels at 224.

    Sources: Masked Autoencoders Are Scalable Vision Learners, https://arxiv.org/abs/2111.06377; PICI,
    https://arxiv.org/abs/2401.13503.

    Example:
        >>> loss = MaskedPatchLoss()
        >>> patch = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> float(loss(torch.tensor([[[-1.0, 0.0, 2.0]]]), patch))  # of (-1, 0, 1) the last is missed by 1
        0.3333...
    """

    def forward(
        self,
        predicted: Tensor,  # (B, R, P) of R masked patches of P values
        patches: Tensor,  # (B, R, P) the same patches of the images
    ) -> Tensor:
        """Return the loss, (), in the dtype of ``predicted``, under autocast at least float32.

        float16 and bfloat16 are computed in float32.

        Raises:
            TypeError: If an argument is no tensor, or of an unsupported or, but under autocast, different dtype.
            ValueError: If a shape or device does not fit, there is no patch, or a patch has a single value.
        """
        _check(predicted, patches)
        wide = torch.promote_types(torch.promote_types(predicted.dtype, patches.dtype), torch.float32)
        with torch.autocast(predicted.device.type, enabled=False):
            values = patches.to(wide)
            values = values / (values.abs().amax(dim=2, keepdim=True) / LARGE).clamp(min=1)
            variance, mean = torch.var_mean(values, dim=2, keepdim=True, correction=1)
            loss = mse_loss(predicted.to(wide), (values - mean) / (variance + EPS).sqrt())
        return loss.to(result_dtype(predicted))


def _check(predicted: Tensor, patches: Tensor) -> None:
    for tensor, name in ((predicted, "predicted"), (patches, "patches")):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in SUPPORTED_DTYPES:
            raise TypeError(f"{name}: expected dtype float16, bfloat16, float32 or float64, got {tensor.dtype}")
    if predicted.dim() != 3 or predicted.shape[0] * predicted.shape[1] == 0 or predicted.shape[2] < 2:
        expected = "(B, R, P) with at least one patch of at least two values"
        raise ValueError(f"predicted: expected shape {expected}, got {tuple(predicted.shape)}")
    if patches.shape != predicted.shape:
        expected = f"{tuple(predicted.shape)} like predicted"
        raise ValueError(f"patches: expected shape {expected}, got {tuple(patches.shape)}")
    if patches.device != predicted.device:
        raise ValueError(f"patches: expected device {predicted.device} like predicted, got {patches.device}")
    if patches.dtype != predicted.dtype and not torch.is_autocast_enabled(predicted.device.type):
        raise TypeError(f"patches: expected dtype {predicted.dtype} like predicted, got {patches.dtype}")
