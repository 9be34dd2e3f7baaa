"""What training on ranks is made of: batch normalization, random numbers, decisions, and rank 0's work for all."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from deepclust_ext.data import RandomAffine
from deepclust_ext.training.batch_norm import RankBatchNorm, synchronize_batch_norm
from deepclust_ext.training.ranks import LostRankError, Ranks
from tests.distributed.pool import PerRank, Pool
from tests.training.runs import config_of, make_trainer

#: Images of each rank.
SIZES = [3, 1, 0, 4]


def small_network(momentum: float | None, affine: bool) -> nn.Sequential:
    torch.manual_seed(0)
    norms = [kind(4, momentum=momentum, affine=affine) for kind in (nn.BatchNorm2d, nn.BatchNorm1d)]
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), norms[0], nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 4), norms[1]
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def normalized(group: Any, x: Tensor, weight: Tensor, dtype: torch.dtype, *settings: Any) -> list[Tensor]:
    """Return what a network gives, the gradient of what it got, its gradients and its state after two steps."""
    network = small_network(*settings)
    if group is not None:
        names = list(network.state_dict())
        synchronize_batch_norm(network, group)
        assert list(network.state_dict()) == names
    x.requires_grad_()
    for _ in range(2):
        network.zero_grad()
        x.grad = None
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = network(x)
        (y.float() * weight).sum().backward()
    network.eval()
    assert x.grad is not None
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return [y.detach().float(), x.grad, *gradients, *network.state_dict().values(), network(x).detach()]


@pytest.mark.parametrize(
    ("momentum", "affine", "dtype"),
    [(0.1, True, torch.float32), (None, False, torch.float32), (0.1, True, torch.bfloat16)],
)
def test_batch_normalization_over_ranks_is_that_of_one_process(
    pool: Pool, momentum: float | None, affine: bool, dtype: torch.dtype
) -> None:
    sizes = [3, 1, 4]
    x, weight = torch.randn(8, 1, 4, 4), torch.randn(8, 4)
    parts = PerRank(x.split(sizes)), PerRank(weight.split(sizes))
    answers = pool.run(normalized, *parts, dtype, momentum, affine, ranks=3)
    expected = normalized(None, x, weight, dtype, momentum, affine)
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (0.05, 0.05)
    count = 2 + sum(1 for _ in small_network(momentum, affine).parameters())
    for place, value in enumerate(expected):
        if place in (0, 1, len(expected) - 1):  # by image
            torch.testing.assert_close(torch.cat([answer[place] for answer in answers]), value, rtol=rtol, atol=atol)
        elif place < count:  # a gradient, of which each rank has a part
            torch.testing.assert_close(sum(answer[place] for answer in answers), value, rtol=rtol, atol=atol)
        else:
            for answer in answers:
                torch.testing.assert_close(answer[place], value, rtol=rtol, atol=atol)


def test_other_layers_than_batch_normalizations_stay() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Sequential(nn.BatchNorm1d(2))).eval()
    parameters = list(network.parameters())
    synchronize_batch_norm(network)
    kinds = [type(part) for part in network.modules()]
    assert kinds == [nn.Sequential, nn.Linear, nn.LayerNorm, nn.Sequential, RankBatchNorm]
    assert all(before is after for before, after in zip(parameters, network.parameters(), strict=True))
    assert not any(part.training for part in network.modules())


def averaged(group: Any, values: Tensor) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    ranks = Ranks(True, group)
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    (parameters[0].sum() * values[0] + parameters[2].sum() * values[1]).backward()
    terms = ranks.average(SGD(parameters), {"loss": values[2], "half": values[0].bfloat16()})
    return [parameter.grad for parameter in parameters], terms


def test_gradients_and_terms_are_averaged_and_a_missing_gradient_stays_missing(pool: Pool) -> None:
    values = torch.tensor([[1.0, 10.0, 3.0], [2.0, 30.0, 4.0], [6.0, 50.0, 8.0]])
    for gradients, terms in pool.run(averaged, PerRank(values), ranks=3):
        assert torch.equal(gradients[0], torch.full((2, 2), 3.0))
        assert gradients[1] is None
        assert torch.equal(gradients[2], torch.full((3,), 30.0))
        assert {name: float(term) for name, term in terms.items()} == {"loss": 5.0, "half": 3.0}


def decided(group: Any, asked: bool) -> bool:
    return Ranks(True, group).any(asked)


@pytest.mark.parametrize("asked", [(False, False, False), (False, True, False)])
def test_what_one_rank_is_asked_holds_for_all(pool: Pool, asked: tuple[bool, ...]) -> None:
    assert pool.run(decided, PerRank(asked), ranks=3) == [any(asked)] * 3


def tried(group: Any, fails: bool) -> list[str]:
    ranks, done = Ranks(True, group), []

    def act() -> None:
        done.append("done")
        if fails:
            raise OSError("the disk is full")

    try:
        ranks.on_first(act)
    except (OSError, LostRankError) as error:
        done.append(str(error))
    return done


def test_a_failure_of_rank_0_is_every_rank_s(pool: Pool) -> None:
    assert pool.run(tried, False, ranks=3) == [["done"], [], []]
    lost = ["rank 0 has failed, and says why"]
    assert pool.run(tried, True, ranks=3) == [["done", "the disk is full"], lost, lost]


class OwnView(nn.Module):
    """A view that draws as it likes."""

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.rand(len(images), 1, 1, 1)


def drawn_by_views(group: Any, out: Path) -> tuple[list[Tensor], Tensor]:
    """Return the first images of each step as the network gets them, by views of two kinds."""
    seen: list[Tensor] = []

    class Seen(nn.Module):
        draws_by_image = True

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images

    ranks = {} if group is None else {"gather_distributed": True, "process_group": group}
    from tests.methods.methodsamples import small_clc

    trainer = make_trainer(
        out,
        config=config_of("clc"),
        method="clc",
        model=small_clc(**ranks),
        views=[nn.Sequential(RandomAffine(), Seen()), nn.Sequential(OwnView(), Seen())],
    )
    trainer.fit()
    return seen, torch.rand(3)


def test_a_view_of_one_s_own_draws_other_numbers_on_each_rank_and_leaves_the_others_alone(
    pool: Pool, tmp_path: Path
) -> None:
    answers = pool.run(drawn_by_views, tmp_path / "two", ranks=2)
    alone, _ = drawn_by_views(None, tmp_path / "one")
    assert torch.equal(answers[0][1], answers[1][1])  # the generator went on as one
    first, second = (answer[0] for answer in answers)
    assert torch.equal(torch.cat([first[0], second[0]]), alone[0])
    assert not torch.equal(first[1] - first[1].mean(), second[1] - second[1].mean())


def test_a_batch_is_shared_out_without_rest_and_a_rank_needs_an_image() -> None:
    ranks: Any = Ranks(False)
    assert ranks.part(7) == slice(0, 7)
    ranks.count = 3
    parts = []
    for ranks.rank in range(3):
        parts += list(range(7))[ranks.part(7)]
    assert parts == list(range(7))


@pytest.mark.parametrize(
    ("sync", "size", "expectation"),
    [
        (True, 3, pytest.raises(ValueError, match="batch_size: expected at least 4 for 4 ranks, got 3")),
        (False, 7, pytest.raises(ValueError, match="batch_size: expected at least 8 for 4 ranks, got 7")),
        (True, 4, nullcontext()),
    ],
)
def test_a_batch_has_images_for_every_rank(sync: bool, size: int, expectation: AbstractContextManager[Any]) -> None:
    from deepclust_ext.training.checks import check_ranks

    with expectation:
        check_ranks(config_of(batch_size=size, sync_batch_norm=sync), 4)
