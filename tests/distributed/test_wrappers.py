"""Parameters of a network under DistributedDataParallel, FSDP2 and torch.compile: gradients of one process."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from deepclust_ext.losses import ClusterContrastiveLoss, ContrastiveLoss, HSDLoss, PrototypeLoss
from tests.distributed.pool import PerRank, Pool


def network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5)).double()


def step(group: Any, a: Tensor, b: Tensor, labels: Tensor, wrapper: str) -> dict[str, Tensor]:
    """Return the gradients of a network by the sum of four losses, all ranks' samples taken together."""
    net: Any = network()
    mesh = None if group is None else DeviceMesh.from_group(group, "cpu")
    forward = net
    if wrapper == "ddp":
        forward = DistributedDataParallel(net, process_group=group)
    elif wrapper == "fsdp":
        for layer in net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
    ranks: dict[str, Any] = {} if group is None else {"gather_distributed": True, "process_group": mesh}
    contrast, clusters = ContrastiveLoss(hardness=0.5, **ranks), ClusterContrastiveLoss(**ranks)
    hsd, prototypes = HSDLoss(**ranks), PrototypeLoss(**ranks)

    def total(z_a: Tensor, z_b: Tensor) -> Tensor:
        shares = z_a.softmax(dim=1), z_b.softmax(dim=1)
        loss: Tensor = contrast(z_a, z_b) + clusters(*shares) + hsd(z_b.detach(), z_a)
        by_cluster: Tensor = prototypes(z_a, z_b, labels, 4)
        return loss + by_cluster

    if wrapper == "compile":
        forward = DistributedDataParallel(net, process_group=group)
        total = torch.compile(total, backend="aot_eager")
    # One forward, as the wrappers want it.
    total(*forward(torch.cat([a, b])).chunk(2)).backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    return {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in gradients.items()}


@pytest.mark.parametrize(
    ("wrapper", "ranks", "sizes"),
    [("ddp", 2, [6, 6]), ("ddp", 3, [5, 1, 6]), ("ddp", "odd", [2, 10]), ("fsdp", 2, [4, 8]), ("compile", 2, [6, 6])],
    ids=str,
)
def test_parameters_get_the_gradients_of_one_process(
    pool: Pool, wrapper: str, ranks: int | str, sizes: list[int]
) -> None:
    first = torch.randn(12, 6, dtype=torch.float64)
    second, labels = first + 0.3 * torch.randn(12, 6), torch.randint(4, (12,))
    with pytest.warns(RuntimeWarning, match="tells little"):
        expected = step(None, first, second, labels, "none")
    shared = [PerRank(x.split(sizes)) for x in (first, second, labels)]
    for answer in pool.run(step, *shared, wrapper, ranks=ranks):
        assert answer.keys() == expected.keys()
        for name, gradient in answer.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)
