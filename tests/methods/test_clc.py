"""CLC: the formula of its step, its queue, its momentum network, its codes and its warnings."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from deepclust_ext import sinkhorn_knopp
from deepclust_ext.evaluation.metrics import clustering_accuracy
from deepclust_ext.methods import CLC, OptimizerSettings
from deepclust_ext.methods.clc import code_statistics
from deepclust_ext.training import LearningRate, Phase, TrainConfig, Trainer, seed_everything
from tests.methods.methodsamples import NUM_CLUSTERS, make_views, small_clc
from tests.methods.plaintorch import assert_same_gradients, backbone, copied_weights, head, unit


def rows(network: Any, views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return z^c and z^n in float64 from the parts of a network, one view below the other."""
    features = [network.backbone(view) for view in views]
    scores = torch.cat([network.cluster_head(feature) for feature in features])
    return scores.double(), torch.cat([network.instance_head(feature) for feature in features]).double()


def test_defaults() -> None:
    method = CLC(nn.Flatten(), 64, 10)
    assert method.key_queue.shape == (65536, 128)
    assert method.score_queue.shape == (65536, 10)
    assert method.momentum == 0.999
    assert (method.contrastive.temperature, method.contrastive.class_temperature) == (0.2, 1.0)
    assert (method.cluster_temperature, method.epsilon, method.num_iters) == (1.0, 0.8, 3)
    assert method.swap_weight == 1
    (group,) = method.make_optimizer(128).param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0)


@pytest.mark.parametrize(("terms", "swap_weight"), [("all", 0.0), ("all", 0.6), ("instance", 0.6), ("labels", 0.6)])
def test_step_is_the_formula(terms: str, swap_weight: float) -> None:
    options = {"temperature": 0.3, "class_temperature": 0.7, "cluster_temperature": 0.2, "epsilon": 0.1}
    method = small_clc(**options, num_iters=4, swap_weight=swap_weight).double()
    with torch.no_grad():  # the momentum network is no longer the online one, and scores differ
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    weights = copied_weights(method)
    first, second = [view.double() for view in make_views(4)[:2]], [view.double() for view in make_views(4)[2:]]
    method.training_step(first)  # fills the queue with 24 keys
    labels = torch.arange(len(second[0])) % NUM_CLUSTERS
    loss, logged = method.training_step(second, labels, terms=terms)
    loss.backward()

    def both(network: str, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """z^c and z^n of all views, one below the other."""
        features = [backbone(view, weights, f"{network}.backbone") for view in views]
        scores = torch.cat([head(rows, weights, f"{network}.cluster_head") for rows in features])
        return scores, torch.cat([head(rows, weights, f"{network}.instance_head") for rows in features])

    key_scores, keys = both("average", second[::-1])
    queue_scores, queue = both("average", first[::-1])
    scores, queries = both("online", second)
    plan = (torch.cat([key_scores, queue_scores]) / 0.1).exp()
    for _ in range(4):  # clusters first, samples last
        plan = plan / plan.sum(dim=0) / NUM_CLUSTERS
        plan = plan / plan.sum(dim=1, keepdim=True) / len(plan)
    codes = plan * len(plan)
    contrastive, swapped = [], []
    for i in range(24):
        share = (scores[i] / 0.2).exp() / (scores[i] / 0.2).exp().sum()

        def logit(other: Tensor, code: Tensor, row: Tensor = queries[i], share: Tensor = share) -> Tensor:
            alike = unit(row) @ unit(other) / 0.3
            return alike + share @ code / 0.7 if terms == "all" else alike

        positive = logit(keys[i], codes[i])
        negatives = torch.stack([logit(queue[j], codes[24 + j]) for j in range(24)])
        contrastive.append(-(positive.exp() / (positive.exp() + negatives.exp().sum())).log())
        swapped.append(-(codes[i] * share.log()).sum())
    expected = {"contrastive": torch.stack(contrastive).mean(), "swapped": torch.stack(swapped).mean()}
    if terms == "labels":
        shares = (scores / 0.2).softmax(dim=1)
        expected["swapped"] = -shares[range(24), labels.repeat(2)].log().mean()
    if terms != "instance":
        expected["loss"] = expected["contrastive"] + swap_weight * expected["swapped"]
    else:
        expected["loss"] = expected["contrastive"]
        del expected["swapped"]
        assert "swapped" not in logged
    expected["loss"].backward()

    for name, value in expected.items():
        assert logged[name].item() == pytest.approx(value.item(), rel=1e-6), name
    assert_same_gradients(method, weights)


def test_the_first_step_has_no_negatives() -> None:
    _, terms = small_clc().training_step(make_views(2))
    assert terms["contrastive"] == 0


@pytest.mark.parametrize("queue_size", [5, 24, 40, 100])
def test_queue_takes_keys_in_turn(queue_size: int) -> None:
    method = small_clc(queue_size=queue_size)
    key_slots = [[0.0] * 8] * queue_size
    score_slots = [[0.0] * NUM_CLUSTERS] * queue_size
    count = 0
    for _ in range(7):
        views = [torch.randn(12, 1, 8, 8) for _ in range(2)]
        scores, keys = rows(copy.deepcopy(method.average), views[::-1])
        method.training_step(views)
        method.after_step()
        for key, score in zip(keys.tolist(), scores.tolist(), strict=True):
            key_slots[count % queue_size] = key
            score_slots[count % queue_size] = score
            count += 1
        torch.testing.assert_close(method.key_queue.double(), torch.tensor(key_slots).double())
        torch.testing.assert_close(method.score_queue.double(), torch.tensor(score_slots).double())


def test_slots_that_no_key_has_taken_change_nothing() -> None:
    losses = []
    for junk in (0.0, 1e6):
        method = small_clc()
        method.key_queue.fill_(junk)
        method.score_queue.fill_(junk)
        for _ in range(2):
            loss, terms = method.training_step(make_views(2))
        losses.append(torch.stack([loss.detach(), *terms.values()]))
    assert torch.equal(*losses)


def test_codes_are_equally_large_over_batch_and_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def spy(scores: Tensor, *, epsilon: float, num_iters: int) -> Tensor:
        seen.append(sinkhorn_knopp(scores, epsilon=epsilon, num_iters=num_iters))
        return seen[-1]

    monkeypatch.setattr("deepclust_ext.methods.clc.sinkhorn_knopp", spy)
    method = small_clc(num_iters=200)
    for _ in range(3):
        method.training_step([torch.randn(12, 1, 8, 8) for _ in range(2)])
    assert [len(codes) for codes in seen] == [24, 48, 64]
    for codes in seen:
        torch.testing.assert_close(codes.mean(dim=0), torch.full((NUM_CLUSTERS,), 1 / NUM_CLUSTERS))
        torch.testing.assert_close(codes.sum(dim=1), torch.ones(len(codes)))


def test_state_dict_holds_queue_and_counter() -> None:
    method, other = small_clc(), small_clc()
    method.training_step(make_views(2))
    other.load_state_dict(method.state_dict())
    views = make_views(2)
    assert torch.equal(method.training_step(views)[0], other.training_step(views)[0])
    assert all(map(torch.equal, method.state_dict().values(), other.state_dict().values()))


def test_momentum_network_is_the_moving_average_and_gets_no_gradient() -> None:
    method = small_clc(momentum=0.75)
    assert all(map(torch.equal, method.average.parameters(), method.online.parameters()))
    with torch.no_grad():
        for parameter in method.online.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = [parameter.clone() for parameter in method.average.parameters()]
    for _ in range(2):
        loss, _ = method.training_step(make_views(2))
    loss.backward()
    method.after_step()
    for old, new, online in zip(before, method.average.parameters(), method.online.parameters(), strict=True):
        assert new.grad is None
        torch.testing.assert_close(new, 0.75 * old + 0.25 * online, rtol=0, atol=1e-6)
        assert online.grad is not None
        assert online.grad.isfinite().all()


def test_assign_is_the_cluster_head_in_evaluation_mode() -> None:
    method = small_clc()
    images = make_views(1)[0]
    method.training_step(make_views(2))  # moves the batch statistics
    assignments = method.assign(images)
    assert method.training
    assert not assignments.requires_grad
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(12))
    torch.testing.assert_close(method.assign(images[:1]), assignments[:1])
    method.eval()
    assert torch.equal(assignments.argmax(dim=1), rows(method.online, [images])[0].argmax(dim=1))


def test_mixed_precision_trains() -> None:
    losses = []
    for enabled in (False, True):
        method = small_clc()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for _ in range(3):
                loss, terms = method.training_step(make_views(2))
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.online.parameters())
        assert all(term.isfinite() for term in terms.values())
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_statistics_of_codes() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.0, 0.1], [0.2, 0.7, 0.1], [0.1, 0.9, 0.5]])
    code = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    means = {name: float(term) for name, term in code_statistics(scores, code).items()}
    assert means["code_entropy"] == pytest.approx(math.log(2) / 2)
    assert means["used_clusters"] == 2
    assert means["balance"] == pytest.approx(1 / 2)  # (2 - 1) / (3 - 1)
    assert float(code_statistics(torch.eye(2, 9), torch.eye(2, 9))["balance"]) == pytest.approx(1)


def warning(method: CLC) -> str | None:
    for _ in range(2):
        _, terms = method.training_step(make_views(2))
    return method.collapse_warning({name: float(term) for name, term in terms.items()})


def test_a_cluster_that_takes_everything_is_named() -> None:
    assert warning(small_clc()) is None
    method = small_clc()
    with torch.no_grad():
        for parameter in method.average.cluster_head.parameters():
            parameter.zero_()
    assert "1 of 4 clusters lead in some row of scores, with a balance of" in (warning(method) or "")


def test_clusters_that_do_not_learn_yet_give_no_warning() -> None:
    _, terms = small_clc(epsilon=100.0).training_step(make_views(2), terms="instance")
    assert small_clc().collapse_warning({name: float(term) for name, term in terms.items()}) is None


def test_codes_that_tell_nothing_are_named() -> None:
    assert "so all clusters look alike" in (warning(small_clc(epsilon=100.0)) or "")
    _, terms = small_clc().training_step(make_views(2))
    beginning = {name: float(term) for name, term in terms.items()} | {"code_entropy": 0.99991 * math.log(NUM_CLUSTERS)}
    assert small_clc().collapse_warning(beginning) is None  # as a healthy run is for some epochs


class FreshNuisance(nn.Module):
    """An augmentation of rotated vectors: noise on the half that tells clusters apart, a new draw of the other half."""

    def __init__(self, rotation: Tensor) -> None:
        super().__init__()
        self.rotation = rotation

    def forward(self, vectors: Tensor) -> Tensor:
        signal, nuisance = (vectors @ self.rotation.T).chunk(2, dim=-1)
        parts = [signal + 0.2 * torch.randn_like(signal), 2 * torch.randn_like(nuisance)]
        return torch.cat(parts, dim=-1) @ self.rotation


@pytest.mark.slow
def test_a_thousand_clusters_stay_balanced_and_beat_kmeans(tmp_path: Path) -> None:
    count, clusters, half = 20_000, 1000, 32
    seed_everything(0)
    labels = torch.arange(count) % clusters
    rotation = torch.linalg.qr(torch.randn(2 * half, 2 * half)).Q
    signal = torch.randn(clusters, half)[labels] + 0.3 * torch.randn(count, half)
    vectors = torch.cat([signal, 2 * torch.randn(count, half)], dim=1) @ rotation
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(2 * half, 512), nn.BatchNorm1d(512), nn.ReLU())
    method = CLC(backbone, 512, clusters, hidden_dim=512, embedding_dim=64, queue_size=2048, momentum=0.8)
    views = [FreshNuisance(rotation)] * 2
    config = TrainConfig(
        [Phase("main", 9)],
        batch_size=512,
        learning_rate=LearningRate("warmup_cosine", warmup=1),
        optimizer=OptimizerSettings("adam", lr=2e-3),
    )
    images = vectors.view(count, 1, 1, 2 * half)
    trainer = Trainer(method, TensorDataset(images, labels), views, config, tmp_path)
    trainer.fit()
    found = {
        "CLC": trainer.cluster(),
        "k-means on the vectors": kmeans(vectors),
        "k-means on the learnt rows": kmeans(trainer.embed()),
    }
    accuracy = {name: clustering_accuracy(labels, predicted) for name, predicted in found.items()}
    for name, predicted in found.items():
        sizes = torch.bincount(predicted, minlength=clusters)
        print(f"{name}: ACC {accuracy[name]:.3f}, {sizes.gt(0).sum()} used, {sizes.min()} to {sizes.max()} of {count}")
    sizes = torch.bincount(found["CLC"], minlength=clusters)
    assert accuracy["CLC"] > 0.7
    assert accuracy["CLC"] > 3 * accuracy["k-means on the vectors"]
    assert accuracy["k-means on the learnt rows"] > 0.9
    assert (sizes > 0).sum() > 0.97 * clusters
    assert sizes.max() < 5 * count / clusters


def kmeans(rows: Tensor) -> Tensor:
    """Return the labels of one k-means with 1,000 clusters."""
    return torch.from_numpy(KMeans(1000, n_init=1, random_state=0).fit_predict(rows.numpy())).long()


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\], got 1.5"):
        small_clc(momentum=1.5)
    with pytest.raises(ValueError, match="queue_size: expected at least 1, got 0"):
        small_clc(queue_size=0)
