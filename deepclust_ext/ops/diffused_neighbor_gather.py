"""diffused_neighbor_gather: noisy samples drawn among the nearest neighbors of a query."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import (
    check_bool,
    check_factor,
    check_integer,
    check_positive,
    check_query_and_bank,
    check_rows_of_bank,
)
from deepclust_ext.ops._dispatch import call
from deepclust_ext.ops.nearest_neighbors import MAX_NEIGHBORS
from deepclust_ext.reference.philox import draw_seed


def diffused_neighbor_gather(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    *,
    num_neighbors: int = 10,
    temperature: float = 0.1,
    noise_std: float = 0.001,
    num_steps: int = 1,
    num_samples: int = 1,
    exclude: Tensor | None = None,  # (B,) int64
    valid: Tensor | None = None,  # (M,) bool
    normalize: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Draw samples near each query: one of its nearest neighbors in a bank, by cosine, plus noise.

    Each sample draws one of the ``num_neighbors`` rows of the bank that are nearest to the query by cosine,
    independently, with probability

    .. math::
        p_j = \exp(\cos_j / temperature) / \sum_l \exp(\cos_l / temperature)

    The sample is that row, not normalized, plus ``noise_std`` times a standard normal number for each element. With
    ``normalize`` it is then divided by max(L2 norm, 1e-12). With ``num_steps`` > 1 the sample walks on before noise is
    added: in each further step it draws again among the rows nearest to the row that it has drawn, except that row.

    With ``num_neighbors=0`` nothing is drawn, and the sample is the query itself plus noise: the diffused sampling of
    the HaDis authors' code. ``bank``, ``exclude`` and ``valid`` are not read then.

    The gradient reaches the rows of the bank that were drawn, and the query where the sample is the query itself. The
    probabilities get none. Half-precision inputs are computed in float32; under autocast inputs are cast to float32.
    Memory beyond the results is of the order of B k, and of B S (k + D) for further steps; the bank is streamed.

    Random numbers come from a counter-based generator (Philox4x32-10) with a seed that each call draws from
    ``generator``. The same seed draws the same indices on every device, with any number of threads, and in the
    plain-PyTorch reference, unless two probabilities differ by less than rounding. What a query draws does not depend
    on the other queries.

    Args:
        query: Rows (B, D), float16, bfloat16, float32 or float64; D > 0. B may be 0.
        bank: Rows (M, D) of the same dtype and device. M may be 0.
        num_neighbors: How many neighbors to draw from, 0 to 256; at most 255 with ``exclude`` and several steps.
        temperature: Temperature of the softmax; above 0. The smaller it is, the more often the nearest row is drawn.
        noise_std: Standard deviation of the noise; 0 to 1e30.
        num_steps: Steps of the walk, at least 1.
        num_samples: S, the number of samples for each query, at least 1; drawn with replacement.
        exclude: For every query the index of one row of the bank that is never drawn, such as its own entry, int64; -1
            for none. An index that is no row of the bank is an error on the CPU. On CUDA and in compiled code, where
            checking would wait for the device, it excludes nothing.
        valid: Which rows of the bank count, bool; by default all. The others may hold anything, even NaN.
        normalize: Divide the samples by their L2 norm. A sample whose norm is below 1e-12 gives gradient 0.
        generator: Where the seed comes from: a generator on the CPU, whatever the device of the query; by default
            torch's own (``torch.manual_seed``). torch.compile takes no generators: leave it out there.

    Returns:
        The pair of samples (B, S, D), in the input dtype, and the indices (B, S) int64 of the rows that were drawn. A
        sample that finds no candidate in a step stays where it is. If it never finds one, its index is -1, and it is
        the query itself plus noise. A query with a NaN or Inf has index -1 and samples NaN; a NaN or Inf in a valid row
        of the bank does this to all queries. With ``normalize``, a sample that is not finite is NaN.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, device or number does not fit.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])
        >>> generator = torch.Generator().manual_seed(0)
        >>> samples, indices = diffused_neighbor_gather(
        ...     bank[:2], bank, num_neighbors=1, noise_std=0.0, exclude=torch.tensor([0, 1]), generator=generator
        ... )
        >>> indices.tolist(), samples.tolist()
        ([[1], [2]], [[[3.0, 4.0]], [[0.0, 2.0]]])

    Source: the diffused sampling alignment of HaDis, https://arxiv.org/abs/2401.14038.
    """
    check_bool(normalize, "normalize")
    temperature, noise_std = check_positive(temperature, "temperature"), check_factor(noise_std, "noise_std")
    num_steps = check_integer(num_steps, "num_steps", 1, 2**31 - 1)
    num_samples = check_integer(num_samples, "num_samples", 1, 2**31 - 1)
    leaves_out = num_steps > 1 and exclude is not None  # the excluded row and the one that the walk stands on
    most, condition = (MAX_NEIGHBORS - 1, " with exclude and several steps") if leaves_out else (MAX_NEIGHBORS, "")
    num_neighbors = check_integer(num_neighbors, "num_neighbors", 0, most, condition)
    if num_neighbors == 0:  # nothing is read then, so that anything may be passed
        bank, exclude, valid = query, None, None
    check_query_and_bank(query, bank, exclude, valid)
    check_rows_of_bank(exclude, len(bank))
    if generator is not None and (not isinstance(generator, torch.Generator) or generator.device.type != "cpu"):
        got = generator.device if isinstance(generator, torch.Generator) else type(generator).__name__
        raise TypeError(f"generator: expected a torch.Generator on the CPU, got {got}")
    if not _extension.uses_native(query.device.type):
        return reference.diffused_neighbor_gather(
            query,
            bank,
            num_neighbors=num_neighbors,
            temperature=temperature,
            noise_std=noise_std,
            num_steps=num_steps,
            num_samples=num_samples,
            exclude=exclude,
            valid=valid,
            normalize=normalize,
            generator=generator,
        )
    seed = draw_seed(generator)
    if isinstance(query, FakeTensor):  # outside of its mode, which takes no other tensors
        seed = query.fake_mode.from_tensor(seed)
    samples, indices, _ = call(
        "diffused_neighbor_gather",
        query,
        bank,
        seed,
        num_neighbors,
        temperature,
        noise_std,
        num_steps,
        num_samples,
        exclude,
        valid,
        normalize,
    )
    return samples, indices


def _fake(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    seed: Tensor,  # ()
    num_neighbors: int = 10,
    temperature: float = 0.1,
    noise_std: float = 0.001,
    num_steps: int = 1,
    num_samples: int = 1,
    exclude: Tensor | None = None,  # (B,)
    valid: Tensor | None = None,  # (M,)
    normalize: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    size = (query.shape[0], num_samples)
    accumulation = torch.promote_types(query.dtype, torch.float32)
    return (
        query.new_empty((*size, query.shape[1])),
        query.new_empty(size, dtype=torch.int64),
        query.new_empty(size if normalize else (0,), dtype=accumulation),
    )


def _fake_backward(
    grad_samples: Tensor,  # (B, S, D)
    samples: Tensor,  # (B, S, D) or (0,)
    indices: Tensor,  # (B, S)
    inverse_norm: Tensor,  # (B, S) or (0,)
    bank_rows: int,
    want_query: bool,
    want_bank: bool,
) -> tuple[Tensor, Tensor]:
    rows, _, dims = grad_samples.shape
    return (
        grad_samples.new_empty((rows, dims) if want_query else (0,)),
        grad_samples.new_empty((bank_rows, dims) if want_bank else (0,)),
    )


if _extension.NATIVE_DEVICES:
    torch.library.register_fake("deepclust_ext::diffused_neighbor_gather", _fake)
    torch.library.register_fake("deepclust_ext::diffused_neighbor_gather_backward", _fake_backward)
