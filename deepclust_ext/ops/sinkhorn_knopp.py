"""sinkhorn_knopp: assignments of equal cluster sizes, batched, for any scores."""

from typing import Literal, overload

import torch
from torch import Tensor

from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import (
    can_look_at,
    check_bool,
    check_dtype,
    check_integer,
    check_non_negative,
    check_positive,
    check_tensor,
    result_dtype,
)
from deepclust_ext.ops._dispatch import call, has_symbol


@overload
def sinkhorn_knopp(
    scores: Tensor,  # (..., N, K)
    *,
    epsilon: float = ...,
    num_iters: int = ...,
    sample_marginals: Tensor | None = ...,  # (N,) or (..., N)
    cluster_marginals: Tensor | None = ...,  # (K,) or (..., K)
    tolerance: float | None = ...,
    differentiable: bool = ...,
    return_num_iters: Literal[False] = ...,
    out: Tensor | None = ...,  # (..., N, K)
) -> Tensor: ...
@overload
def sinkhorn_knopp(
    scores: Tensor,  # (..., N, K)
    *,
    epsilon: float = ...,
    num_iters: int = ...,
    sample_marginals: Tensor | None = ...,  # (N,) or (..., N)
    cluster_marginals: Tensor | None = ...,  # (K,) or (..., K)
    tolerance: float | None = ...,
    differentiable: bool = ...,
    return_num_iters: Literal[True],
    out: Tensor | None = ...,  # (..., N, K)
) -> tuple[Tensor, Tensor]: ...
def sinkhorn_knopp(
    scores: Tensor,  # (..., N, K)
    *,
    epsilon: float = 0.05,
    num_iters: int = 3,
    sample_marginals: Tensor | None = None,  # (N,) or (..., N)
    cluster_marginals: Tensor | None = None,  # (K,) or (..., K)
    tolerance: float | None = None,
    differentiable: bool = False,
    return_num_iters: bool = False,
    out: Tensor | None = None,  # (..., N, K)
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Turn scores into assignments under which every cluster receives its share of the samples.

    Returned is N P, where P is the last iterate of

    .. math::
        P = diag(u) \exp(scores / \epsilon) \, diag(v) \qquad
        v_k \leftarrow c_k / \sum_n u_n \exp(s_{nk} / \epsilon) \qquad
        u_n \leftarrow r_n / \sum_k v_k \exp(s_{nk} / \epsilon)

    The iteration starts from u = 1 and normalizes clusters first and samples last, as in SwAV. The marginals r
    (samples) and c (clusters) are 1/N and 1/K unless they are given, so by default every row of the result sums to 1.
    The iterates are SwAV's wherever those are finite. Ours are finite for every finite score and epsilon: exponentials
    are taken relative to potentials that follow the iteration, so nothing overflows and no cluster becomes empty.

    To mask scores, set them to a finite number far below the others, such as -1e9 or the lowest of the dtype. The
    result is 0 there, and equal to SwAV's elsewhere. If all scores of a sample or cluster are that low, SwAV's loop is
    NaN; here only the differences from its own largest score count, as in exact arithmetic.

    Half-precision inputs are computed in float32; under autocast inputs are cast to float32. Results do not depend on
    the number of threads. Second derivatives raise ``RuntimeError``.

    Args:
        scores: Similarities (..., N, K) of samples and clusters, such as cosines; float16, bfloat16, float32 or
            float64. Each (N, K) is a problem of its own.
        epsilon: Smoothness; above 0. The smaller it is, the harder the assignments.
        num_iters: Number of iterations, at least 1; with ``tolerance`` the largest number.
        sample_marginals: Shares (N,), or (..., N) per problem, of the samples; at least 0. They are divided by their
            sum. A sample of share 0 takes no part and gets a row of zeros.
        cluster_marginals: Shares (K,), or (..., K) per problem, of the clusters, in the same way.
        tolerance: Stop a problem early once its clusters' sums differ from their shares by at most this, as the sum of
            absolute differences; at least 0.
        differentiable: Let the gradient of the iterations that were made reach ``scores``. It takes memory of the order
            of ``num_iters`` (N + K). Marginals get no gradient. Without it the result is constant.
        return_num_iters: Also return how many iterations every problem took.
        out: Memory for the result, such as the result of the call before. It must have the shape, dtype and device of
            the result, be contiguous, and share no memory with the inputs. Large results are faster with it, because
            new memory costs page faults. On the CPU nothing else of that size is then needed in float32 and float64,
            unless scores are masked or not contiguous. It is allowed only where no gradient is recorded, and not within
            the transforms of ``torch.func``.

    Returns:
        The assignments (..., N, K) in the input dtype, in ``out`` if it is given; with ``return_num_iters`` the pair of
        these and the iterations (...) int64. A problem is NaN if scores or shares have a NaN or Inf, or if a share is
        negative or none is positive.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, device or number does not fit, or ``out`` shares memory with an input or is given although
            a gradient is recorded.
        RuntimeError: ``out`` within a transform of ``torch.func``.

    Example:
        >>> scores = torch.tensor([[1.0, 0.0], [0.9, 0.0]])
        >>> sinkhorn_knopp(scores, epsilon=0.05, num_iters=50).round(decimals=2)
        tensor([[0.7300, 0.2700],
                [0.2700, 0.7300]])

    Source: Cuturi, https://arxiv.org/abs/1306.0895; the order of the steps, SwAV, https://arxiv.org/abs/2006.09882.
    """
    check_bool(return_num_iters, "return_num_iters")
    epsilon, num_iters, tolerance = check_sinkhorn(
        scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, differentiable
    )
    if out is not None:
        _check_memory(scores, sample_marginals, cluster_marginals, differentiable, out)
    # The common case without the name of a device's type, which takes small calls a while.
    is_native = scores.is_cpu and "cpu" in _extension.NATIVE_DEVICES
    if not (is_native or _extension.uses_native(scores.device.type)):
        return reference.sinkhorn_knopp(
            scores,
            epsilon=epsilon,
            num_iters=num_iters,
            sample_marginals=sample_marginals,
            cluster_marginals=cluster_marginals,
            tolerance=tolerance,
            differentiable=differentiable,
            return_num_iters=return_num_iters,
            out=out,
        )
    if out is None:
        assignments, used, _ = call(
            "sinkhorn_knopp",
            scores,
            epsilon,
            num_iters,
            sample_marginals,
            cluster_marginals,
            tolerance,
            differentiable,
        )
    else:
        used = _write(scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, out)
        assignments = out
    return (assignments, used) if return_num_iters else assignments


def _write(
    scores: Tensor,  # (..., N, K)
    epsilon: float,
    num_iters: int,
    sample_marginals: Tensor | None,  # (N,) or (..., N)
    cluster_marginals: Tensor | None,  # (K,) or (..., K)
    tolerance: float | None,
    out: Tensor,  # (..., N, K)
) -> Tensor:
    """Let the op write its assignments into ``out``, and return the iterations used."""
    arguments = (scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance)
    if torch.compiler.is_compiling() and has_symbol("sinkhorn_knopp", arguments):
        assignments, used, _ = call(
            "sinkhorn_knopp", scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, False
        )
        out.copy_(assignments)
        return used
    return torch.ops.deepclust_ext.sinkhorn_knopp.out(  # type: ignore[no-any-return]
        scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, out=out
    )


def check_sinkhorn(
    scores: Tensor,  # (..., N, K)
    epsilon: float,
    num_iters: int,
    sample_marginals: Tensor | None,  # (N,) or (..., N)
    cluster_marginals: Tensor | None,  # (K,) or (..., K)
    tolerance: float | None,
    differentiable: bool,
) -> tuple[float, int, float | None]:
    """Raise the errors of the contract; return epsilon, the number of iterations and the tolerance as plain numbers."""
    check_bool(differentiable, "differentiable")
    epsilon = check_positive(epsilon, "epsilon")
    num_iters = check_integer(num_iters, "num_iters", 1)
    if tolerance is not None:
        tolerance = check_non_negative(tolerance, "tolerance")
    _check(scores, sample_marginals, cluster_marginals)
    return epsilon, num_iters, tolerance


def _check(
    scores: Tensor,  # (..., N, K)
    sample_marginals: Tensor | None,  # (N,) or (..., N)
    cluster_marginals: Tensor | None,  # (K,) or (..., K)
) -> None:
    check_tensor(scores, "scores")
    check_dtype(scores, "scores")
    if scores.dim() < 2:
        raise ValueError(f"scores: expected shape (..., N, K), got {tuple(scores.shape)}")
    if sample_marginals is None and cluster_marginals is None:
        return
    batch = tuple(scores.shape[:-2])
    for shares, name, size in (
        (sample_marginals, "sample_marginals", scores.shape[-2]),
        (cluster_marginals, "cluster_marginals", scores.shape[-1]),
    ):
        if shares is None:
            continue
        check_tensor(shares, name)
        if tuple(shares.shape) not in ((size,), (*batch, size)):
            expected = f"({size},)" + (f" or {(*batch, size)}" if batch else "")
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(shares.shape)}")
        if not shares.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, got {shares.dtype}")
        if shares.device != scores.device:
            raise ValueError(f"{name}: expected device {scores.device} like scores, got {shares.device}")


def _check_memory(
    scores: Tensor,  # (..., N, K)
    sample_marginals: Tensor | None,  # (N,) or (..., N)
    cluster_marginals: Tensor | None,  # (K,) or (..., K)
    differentiable: bool,
    out: Tensor,  # (..., N, K)
) -> None:
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError("out: expected None within the transforms of torch.func, got a tensor")
    check_tensor(out, "out")
    if differentiable and scores.requires_grad and torch.is_grad_enabled():
        raise ValueError("out: expected None where the gradient of scores is recorded, got a tensor")
    if out.requires_grad and torch.is_grad_enabled():
        raise ValueError("out: expected a tensor that requires no gradient")
    _check_out(scores, out)
    if not can_look_at(out):  # then the op itself looks at the memory
        return
    if out.is_neg():
        raise ValueError("out: expected a tensor of its own values, got the negative of another")
    if out.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError("out: expected no tensor of inference mode outside of it")
    inputs = {"scores": scores, "sample_marginals": sample_marginals, "cluster_marginals": cluster_marginals}
    for name, tensor in inputs.items():
        if tensor is not None and _meet(out, tensor):
            raise ValueError(f"out: expected memory apart from that of {name}")


def _check_out(
    scores: Tensor,  # (..., N, K)
    out: Tensor,  # (..., N, K)
) -> None:
    dtype = result_dtype(scores)
    if out.shape != scores.shape:
        raise ValueError(f"out: expected shape {tuple(scores.shape)} like scores, got {tuple(out.shape)}")
    if out.dtype != dtype:
        raise TypeError(f"out: expected dtype {dtype} of the result, got {out.dtype}")
    if out.device != scores.device:
        raise ValueError(f"out: expected device {scores.device} like scores, got {out.device}")
    if not out.is_contiguous():
        raise ValueError(f"out: expected a contiguous tensor, got strides {out.stride()}")


def _meet(first: Tensor, second: Tensor) -> bool:
    """Return whether the memory from the first to the last element of one tensor overlaps that of the other."""
    if not first.numel() or not second.numel():
        return False
    ends = []
    for tensor in (first, second):
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        ends.append(tensor.data_ptr() + (last + 1) * tensor.element_size())
    return first.data_ptr() < ends[1] and second.data_ptr() < ends[0]


def _fake(
    scores: Tensor,  # (..., N, K)
    epsilon: float = 0.05,
    num_iters: int = 3,
    sample_marginals: Tensor | None = None,  # (N,) or (..., N)
    cluster_marginals: Tensor | None = None,  # (K,) or (..., K)
    tolerance: float | None = None,
    differentiable: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(scores, sample_marginals, cluster_marginals)
    *batch, samples, clusters = scores.shape
    accumulation = torch.promote_types(scores.dtype, torch.float32)
    kept = (*batch, num_iters, 2, samples + clusters) if differentiable else (0,)
    return (
        torch.empty_like(scores, memory_format=torch.contiguous_format),
        scores.new_empty(batch, dtype=torch.int64),
        scores.new_empty(kept, dtype=accumulation),
    )


def _fake_out(
    scores: Tensor,  # (..., N, K)
    epsilon: float = 0.05,
    num_iters: int = 3,
    sample_marginals: Tensor | None = None,  # (N,) or (..., N)
    cluster_marginals: Tensor | None = None,  # (K,) or (..., K)
    tolerance: float | None = None,
    *,
    out: Tensor,  # (..., N, K)
) -> Tensor:
    _check(scores, sample_marginals, cluster_marginals)
    _check_out(scores, out)
    return scores.new_empty(scores.shape[:-2], dtype=torch.int64)


def _fake_backward(
    grad_assignments: Tensor,  # (..., N, K)
    scores: Tensor,  # (..., N, K)
    used: Tensor,  # (...)
    potentials: Tensor,  # (..., T, 2, N + K)
    epsilon: float,
    sample_marginals: Tensor | None,  # (N,) or (..., N)
    cluster_marginals: Tensor | None,  # (K,) or (..., K)
) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


if _extension.NATIVE_DEVICES:
    torch.library.register_fake("deepclust_ext::sinkhorn_knopp", _fake)
    torch.library.register_fake("deepclust_ext::sinkhorn_knopp.out", _fake_out)
    torch.library.register_fake("deepclust_ext::sinkhorn_knopp_backward", _fake_backward)
