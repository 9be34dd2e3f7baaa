"""Forward-mode tangents where results are constants."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_tangents(op: str, *tensors: Tensor | None) -> None:
    """Raise NotImplementedError, as the native op does, for a forward-mode tangent, which would silently vanish."""
    if torch.compiler.is_compiling():
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{op}: has no forward-mode derivative")
