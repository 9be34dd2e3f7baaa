"""Classes with the names and argument order of published code, for one-line swaps."""

from typing import cast

from torch import Tensor, nn

from deepclust_ext.losses import HSDLoss
from deepclust_ext.ops._checks import check_bool, check_feature_pair, check_temperature, plain


class HSD(nn.Module):
    """The class ``HSD`` of the HaDis authors, on the fused op: change the import, keep the training loop.

    As in their class, the teacher comes first and is not detached: pass detached keys, or the teacher gets a gradient.

    Args:
        tau: Temperature.

    Raises:
        TypeError: ``tau`` is neither a number nor a floating tensor.
        ValueError: ``tau`` is not above 0, a number that is not finite, or a tensor with dimensions.
    """

    def __init__(self, tau: float | Tensor = 0.5) -> None:
        super().__init__()
        self.tau = check_temperature(tau, "tau")

    def forward(
        self,
        teacher_inputs: Tensor,  # (N, D)
        inputs: Tensor,  # (N, D)
        normalized: bool = True,
    ) -> Tensor:
        """Return the mean loss, (); with ``normalized=True`` rows are divided by their L2 norm first."""
        check_feature_pair(teacher_inputs, inputs, "teacher_inputs", "inputs")
        check_bool(normalized, "normalized")
        tau = check_temperature(self.tau, "tau", teacher_inputs, "teacher_inputs")
        return cast(Tensor, HSDLoss(temperature=tau, normalize=normalized)(teacher_inputs, inputs))

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return f"tau={plain(self.tau)}"
