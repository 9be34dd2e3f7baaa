"""HaDis: the formulas of its step, its teacher, its optimiser and its messages."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from deepclust_ext import reference
from deepclust_ext.losses import HSDLoss, PrototypeLoss
from deepclust_ext.methods import HaDis
from deepclust_ext.methods.hadis import with_noise
from tests.methods.methodsamples import collapsed, make_views, small_hadis


def test_defaults_are_the_paper_s() -> None:
    method = HaDis(nn.Flatten(), 64, 10)
    assert [tuple(p.shape) for p in method.predictor.parameters()][:1] == [(4096, 256)]
    assert (method.momentum, method.noise_std, method.prototype_weight, method.hsd.temperature) == (
        0.996,
        0.001,
        0.1,
        0.5,
    )
    optimizer = method.make_optimizer(128)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.25]
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {5e-4}


def test_step_is_the_formula() -> None:
    method, views = small_hadis(noise_std=0.0), make_views(2)
    labels = torch.arange(12) % 3
    loss, _ = method.training_step(views, labels)
    queries = [method.predictor(method.student(view)) for view in views]
    keys = [method.teacher(view) for view in views]
    expected = torch.zeros(())
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        alignment = -2 * (query * key).sum(1) / (query.norm(dim=1) * key.norm(dim=1))
        hsd = reference.fused_hsd_loss(key, query)
        assert isinstance(hsd, Tensor)
        expected = expected + (alignment.mean() + hsd + 0.1 * PrototypeLoss()(query, key, labels, 4)) / 2
    torch.testing.assert_close(loss, expected)


def test_warm_up_has_neither_prototypes_nor_noise() -> None:
    views = make_views(2)
    results = []
    for seed in (0, 1):
        method = small_hadis(noise_std=10.0)
        torch.manual_seed(seed)
        loss, terms = method.training_step(views)
        assert "prototype" not in terms
        results.append(loss)
    assert torch.equal(results[0], results[1])


def test_noise_is_drawn_after_warm_up() -> None:
    views, labels = make_views(2), torch.zeros(12, dtype=torch.int64)
    quiet, _ = small_hadis(noise_std=0.0).training_step(views, labels)
    noisy, _ = small_hadis(noise_std=1.0).training_step(views, labels)
    assert not torch.equal(quiet, noisy)


def test_predictor_runs_once_per_view() -> None:
    method, calls = small_hadis(), []
    method.predictor.register_forward_hook(lambda *_: calls.append(1))
    method.training_step(make_views(2))
    assert len(calls) == 2


def test_double_pass_runs_it_twice_with_noise_of_its_own() -> None:
    method, inputs = small_hadis(double_pass=True, noise_std=0.5), []
    spy = method.predictor.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    views, labels = make_views(2), torch.arange(12) % 3
    loss, terms = method.training_step(views, labels)
    spy.remove()
    assert len(inputs) == 4
    assert not any(torch.equal(inputs[view], inputs[view + 2]) for view in (0, 1))
    queries = [method.predictor(rows) for rows in inputs]
    keys = [method.teacher(view) for view in views]
    dsa = [-2 * cosine_similarity(queries[i], keys[j]).mean() for i, j in ((0, 1), (1, 0))]
    hsd = [HSDLoss(0.5)(keys[j], queries[i + 2]) for i, j in ((0, 1), (1, 0))]
    prototype = [PrototypeLoss()(queries[i + 2], keys[j], labels, 4) for i, j in ((0, 1), (1, 0))]
    torch.testing.assert_close(terms["dsa"], sum(dsa) / 2)
    torch.testing.assert_close(terms["hsd"], sum(hsd) / 2)
    torch.testing.assert_close(loss, (sum(dsa) + sum(hsd) + 0.1 * sum(prototype)) / 2)


@pytest.mark.parametrize(("hsd_weight", "prototype_weight"), [(0.0, 0.0), (1.0, 0.0), (0.5, 3.0)])
def test_weights_of_the_losses(hsd_weight: float, prototype_weight: float) -> None:
    method = small_hadis(hsd_weight=hsd_weight, prototype_weight=prototype_weight)
    loss, terms = method.training_step(make_views(2), torch.arange(12) % 3)
    expected = terms["dsa"] + hsd_weight * terms["hsd"] + prototype_weight * terms["prototype"]
    torch.testing.assert_close(loss.detach(), expected)


def test_bank_remembers_the_teacher_s_mean_of_both_views() -> None:
    method, views = small_hadis(bank_size=20), make_views(2)
    index = torch.arange(12) + 5
    method.training_step(views, None, index)  # in warm-up already
    keys = [normalize(method.teacher(view), dim=1) for view in views]
    torch.testing.assert_close(method.bank[index], normalize(keys[0] + keys[1], dim=1))
    assert method.in_bank.tolist() == [False] * 5 + [True] * 12 + [False] * 3
    other = small_hadis(bank_size=20)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.bank, method.bank)
    assert torch.equal(other.in_bank, method.in_bank)


def test_neighbors_leave_out_the_image_itself_and_what_was_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    method = small_hadis(bank_size=14, noise_std=0.0, num_neighbors=2, neighbor_temperature=1e-4)
    index = torch.arange(12)
    method.training_step(make_views(2), None, index)
    bank = method.bank.clone()
    targets: list[Tensor] = []

    def spy(query: Tensor, target: Tensor) -> Tensor:
        targets.append(target)
        return cosine_similarity(query, target)

    monkeypatch.setattr("deepclust_ext.methods.hadis.cosine_similarity", spy)
    views = [view + 0.1 for view in make_views(2)]
    method.training_step(views, index % 3, index)
    # So cold a softmax draws the nearest; entries 12 and 13 are zeros, nearer than an opposite row if they counted.
    for target, view in zip(targets, reversed(views), strict=True):
        cosines = normalize(method.teacher(view), dim=1) @ bank[:12].T
        expected = cosines.fill_diagonal_(-2).argmax(dim=1)
        torch.testing.assert_close(target, bank[expected])
    assert not torch.equal(method.bank, bank)  # what was drawn from is the state before this step


def test_an_empty_bank_gives_the_key_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    views, labels, index = make_views(2), torch.arange(12) % 3, torch.arange(12)
    with_bank, _ = small_hadis(bank_size=12, noise_std=0.0).training_step(views, labels, index)
    without, _ = small_hadis(noise_std=0.0).training_step(views, labels)
    torch.testing.assert_close(with_bank, without)


def test_neighbors_need_the_places_of_the_images() -> None:
    with pytest.raises(ValueError, match="index: expected the places of the images in the data set, got None"):
        small_hadis(bank_size=12).training_step(make_views(2), torch.arange(12) % 3)


def test_noise_is_the_op_s() -> None:
    rows = torch.randn(5, 3)
    torch.manual_seed(3)
    noisy = with_noise(rows, 0.1)
    torch.manual_seed(3)
    expected, _ = reference.diffused_neighbor_gather(rows, rows, num_neighbors=0, noise_std=0.1)
    torch.testing.assert_close(noisy, expected.squeeze(1))
    assert torch.equal(with_noise(rows, 0.0), rows)


def test_teacher_gets_no_gradient_and_the_student_does() -> None:
    method = small_hadis()
    loss, _ = method.training_step(make_views(2), torch.arange(12) % 3)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(p.grad is not None for p in [*method.student.parameters(), *method.predictor.parameters()])


def test_teacher_update_is_the_moving_average() -> None:
    method = small_hadis(momentum=0.75)
    assert all(map(torch.equal, method.teacher.parameters(), method.student.parameters()))
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step()
    for old, new, student in zip(before, method.teacher.parameters(), method.student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * student, rtol=0, atol=1e-6)


def test_embed_is_the_teacher() -> None:
    method = small_hadis()
    images = make_views(1)[0]
    rows = method.embed(images)
    with torch.no_grad():
        for parameter in [*method.student.parameters(), *method.predictor.parameters()]:
            parameter.zero_()
    assert torch.equal(method.embed(images), rows)


def test_collapse_is_named() -> None:
    method = collapsed(small_hadis())
    _, terms = method.training_step(make_views(2))
    message = method.collapse_warning({name: float(term) for name, term in terms.items()})
    assert message is not None
    assert "which is ln 2" in message
    assert "collapsed to a point" in message


def test_a_training_batch_is_no_collapse_and_a_converged_one_is_told_apart() -> None:
    method = small_hadis()
    _, terms = method.training_step(make_views(2))
    means = {name: float(term) for name, term in terms.items()}
    assert method.collapse_warning(means) is None
    means |= {"hsd": math.log(2), "zero_negative_weight": 1.0, "zero_positive_weight": 1.0, "feature_spread": 0.9}
    assert "converged" in (method.collapse_warning(means) or "")


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\], got 1.5"):
        small_hadis(momentum=1.5)
