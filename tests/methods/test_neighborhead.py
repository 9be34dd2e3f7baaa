"""NeighborHead: its step against plain loops, teachers, the best head, a frozen backbone, and memory."""

import math
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from deepclust_ext import _extension
from deepclust_ext.methods import NeighborHead
from deepclust_ext.methods.pair_information import pair_information, scaled_unit_rows
from tests.methods.methodsamples import NUM_CLUSTERS, make_views, small_backbone, small_neighborhead
from tests.methods.plaintorch import Weights, assert_same_gradients, copied_weights, linear, unit


def plain_shares(features: Tensor, weights: Weights, at: str, temperature: float) -> list[Tensor]:
    """Return the shares of each row, row by row."""
    rows = list(features)
    if f"{at}.layers.0.weight" in weights:
        hidden = linear(features, weights, f"{at}.layers.0")
        active = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        rows = list(linear(active, weights, f"{at}.layers.2"))
    shares = []
    for row in rows:
        cosines = [unit(row) @ unit(prototype) for prototype in weights[f"{at}.prototypes"]]
        powers = (torch.stack(cosines) * weights[f"{at}.scales"].squeeze(1) / temperature).exp()
        shares.append(powers / powers.sum())
    return shares


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("hidden_dim", [16, 0])
def test_a_step_is_the_formula(hidden_dim: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "reference":  # in blocks of three pairs, the last one shorter
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
        monkeypatch.setattr(sys.modules["deepclust_ext.reference.pair_information"], "_TILE", 6 * NUM_CLUSTERS)
    options = {"beta": 0.7, "temperature": 0.3, "distribution_momentum": 0.8, "hidden_dim": hidden_dim}
    method, views = small_neighborhead(**options).double(), [view.double() for view in make_views(2, 8)]
    with torch.no_grad():
        for parameter in (*method.heads.parameters(), *method.teachers.parameters()):  # heads and teachers differ
            parameter.add_(0.3 * torch.randn_like(parameter))
        method.distribution.copy_(torch.rand(3, NUM_CLUSTERS).softmax(dim=1))
    before, weights = method.distribution.clone(), copied_weights(method)
    loss, logged = method.training_step(views)
    loss.backward()

    backbone = small_backbone().double().eval()
    backbone.load_state_dict(method.backbone.state_dict())
    features = backbone(torch.cat(views)).detach()
    students = [plain_shares(features, weights, f"heads.{head}", 0.3) for head in range(3)]
    teachers = [plain_shares(features, weights, f"teachers.{head}", 0.3) for head in range(3)]
    distributions = []
    for head in range(3):
        mean = torch.stack(teachers[head]).mean(dim=0)
        distributions.append(0.8 * before[head] + 0.2 * mean)
        torch.testing.assert_close(method.distribution[head], distributions[head])
    expected: list[Tensor] = []
    pair_weights = [sum(teachers[h][i] @ teachers[h][i + 8] for h in range(3)) / 3 for i in range(8)]
    for head in range(3):
        terms = []
        for pair in range(8):
            for own, other in ((pair, pair + 8), (pair + 8, pair)):
                joint = torch.zeros((), dtype=torch.float64)
                for k in range(NUM_CLUSTERS):
                    joint = joint + (students[head][own][k] * teachers[head][other][k]) ** 0.7 / distributions[head][k]
                terms.append(-pair_weights[pair] * joint.log())
        expected.append(torch.stack(terms).mean())
    plain = torch.stack(expected).mean()
    plain.backward()

    assert loss.item() == pytest.approx(plain.item(), rel=1e-9)
    assert logged["pair_weight"].item() == pytest.approx(float(sum(pair_weights)) / 8, rel=1e-9)
    largest = torch.stack([share.max() for head in teachers for share in head])
    assert logged["confidence"].item() == pytest.approx(largest.mean().item(), rel=1e-9)
    entropies = [-(shares * shares.log()).sum() for shares in distributions]
    used = torch.stack([entropy.exp() for entropy in entropies]).mean()
    assert logged["effective_clusters"].item() == pytest.approx(used.item(), rel=1e-6)
    torch.testing.assert_close(method.head_losses, 0.01 * torch.stack(expected).detach())
    assert_same_gradients(method, weights)


def test_a_layer_of_scaled_unit_rows_has_the_gradients_of_its_formula() -> None:
    rows, scales = torch.randn(7, 5).double(), torch.randn(7, 1).double()
    rows[3] = 0  # has no direction
    rows.requires_grad_(), scales.requires_grad_()
    slope = torch.randn(7, 5).double()
    expected = torch.autograd.grad((scales * normalize(rows, dim=1) * slope).sum(), (rows, scales))
    weight = scaled_unit_rows(rows, scales)
    torch.testing.assert_close(weight, scales * normalize(rows, dim=1))
    torch.testing.assert_close(torch.autograd.grad((weight * slope).sum(), (rows, scales)), expected)


def test_a_head_works_under_transforms_and_has_second_derivatives() -> None:
    head, rows = small_neighborhead().double().heads[0], torch.randn(3, 4, 36).double()
    torch.testing.assert_close(torch.func.vmap(head)(rows), torch.stack([head(each) for each in rows]))
    assert torch.func.jvp(head, (rows[0],), (rows[1],))[1].shape == (4, NUM_CLUSTERS)
    given = torch.randn(2, 3).double().requires_grad_(), torch.randn(2, 1).double().requires_grad_()
    assert torch.autograd.gradgradcheck(scaled_unit_rows, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_features_may_be_of_another_dtype(dtype: torch.dtype) -> None:
    """A frozen backbone may compute in half precision by itself."""

    class Backbone(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).to(dtype)

    def loss_of(backbone: nn.Module, views: list[Tensor]) -> Tensor:
        torch.manual_seed(0)
        loss, _ = NeighborHead(backbone, 64, 5, num_heads=2, hidden_dim=0).training_step(views)
        loss.backward()
        return loss.detach()

    views = make_views(2, 8)
    expected = loss_of(nn.Flatten(), views)
    torch.testing.assert_close(loss_of(Backbone(), views), expected, rtol=1e-2, atol=1e-3, check_dtype=False)


def test_a_cluster_that_nobody_has_chosen_stays_finite() -> None:
    rows, weight = torch.ones(6, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1000.0, 0.0]])
    rows.requires_grad_(), weight.requires_grad_()
    known = torch.tensor([0.5, 0.5, 0.0])  # the teacher's share of the third is 0 in float32 too
    value = pair_information(rows, weight, rows.detach(), weight.detach(), known, torch.ones(3), 0.6, 1.0)
    value.backward()
    # Two equal shares of a half: log(2 * 0.25^0.6 / 0.5).
    assert value.item() == pytest.approx(math.log(4 * 0.25**0.6), rel=1e-5)
    assert rows.grad is not None
    assert weight.grad is not None
    assert rows.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_teachers_move_and_the_backbone_does_not() -> None:
    method = small_neighborhead(momentum=0.75)
    statistics = {name: buffer.clone() for name, buffer in method.backbone.named_buffers()}
    with torch.no_grad():
        for parameter in method.heads.parameters():
            parameter.add_(1.0)
    old = {name: parameter.clone() for name, parameter in method.teachers.named_parameters()}
    method.training_step(make_views(2, 8))
    method.after_step()
    new = dict(method.heads.named_parameters())
    for name, parameter in method.teachers.named_parameters():
        torch.testing.assert_close(parameter, 0.75 * old[name] + 0.25 * new[name])
    assert not any(parameter.requires_grad for parameter in method.backbone.parameters())
    for name, buffer in method.backbone.named_buffers():
        assert torch.equal(buffer, statistics[name]), name


def test_clusters_are_those_of_the_best_teacher() -> None:
    method = small_neighborhead()
    images = make_views(1, 8)[0]
    features = method.backbone.eval()(images)
    for best in (2, 0):
        method.head_losses.copy_(torch.tensor([float(abs(best - head)) for head in range(3)]))
        expected = (method.teachers[best](features) / method.temperature).softmax(dim=1)
        torch.testing.assert_close(method.assign(images), expected)
    torch.testing.assert_close(method.embed(images), torch.nn.functional.normalize(features, dim=1))


def test_defaults_are_the_authors() -> None:
    method = NeighborHead(nn.Flatten(), 64, 10)
    shapes = [tuple(parameter.shape) for parameter in method.heads[3].parameters()]
    assert shapes == [(10, 256), (10, 1), (512, 64), (512,), (256, 512), (256,)]
    assert (method.beta, method.temperature, method.momentum, method.num_heads) == (0.6, 0.1, 0.996, 16)
    (group,) = method.make_optimizer(1024).param_groups
    assert (group["lr"], group["weight_decay"]) == (4e-4, 1e-4)
    with pytest.raises(ValueError, match="beta: expected a finite number above 0, got 0"):
        NeighborHead(nn.Flatten(), 64, 10, beta=0)
    with pytest.raises(ValueError, match="beta: expected a number from 1e-30 to 1e\\+30, got 1e-40"):
        NeighborHead(nn.Flatten(), 64, 10, beta=1e-40)


def test_labels_start_the_heads_and_leave_their_losses() -> None:
    method, views = small_neighborhead(temperature=0.2).double(), [view.double() for view in make_views(2, 8)]
    weights, labels = copied_weights(method), torch.arange(8) % NUM_CLUSTERS
    loss, _ = method.training_step(views, labels, terms="labels")
    loss.backward()
    backbone = small_backbone().double().eval()
    backbone.load_state_dict(method.backbone.state_dict())
    features = backbone(torch.cat(views)).detach()
    found = []
    for head in range(3):
        shares = plain_shares(features, weights, f"heads.{head}", 0.2)
        found += [-share[int(labels[row % 8])].log() for row, share in enumerate(shares)]
    plain = torch.stack(found).mean()
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-9)
    assert_same_gradients(method, weights)
    assert not method.head_losses.any()
