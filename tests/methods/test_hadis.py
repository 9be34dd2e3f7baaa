"""HaDis: the formulas of its step, its teacher, its optimizer and its messages."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from deepclust_ext import reference
from deepclust_ext.methods import HaDis
from deepclust_ext.methods.hadis import with_noise
from deepclust_ext.methods.shared import rising_momentum
from tests.methods.methodsamples import collapsed, make_views, small_hadis
from tests.methods.plaintorch import assert_same_gradients, backbone, copied_weights, head, unit


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


def plain_hsd(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """HSD of one direction, anchor by anchor."""
    teacher, student = torch.stack(list(map(unit, teacher))), torch.stack(list(map(unit, student)))

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().sum().clamp(min=1e-12).sqrt()

    losses = []
    for i, anchor in enumerate(teacher):
        to_teacher = [distance(anchor, row) for row in teacher]
        to_student = [distance(anchor, row) for row in student]
        negatives = [j for j in range(len(teacher)) if to_teacher[j] > to_student[i]]
        positives = [j for j in range(len(teacher)) if j not in negatives]
        exponent = torch.zeros((), dtype=torch.float64)
        if negatives:
            n = min(negatives, key=lambda j: to_student[j].item())
            exponent = exponent - max((to_teacher[n] - to_student[n]).item(), 0.0) * to_student[n]
        if positives:
            p = max(positives, key=lambda j: to_student[j].item())
            exponent = exponent + max((to_student[p] - to_teacher[p]).item(), 0.0) * to_student[p]
        losses.append((1 + (exponent / temperature).exp()).log())
    return torch.stack(losses).mean()


def plain_prototypes(query: Tensor, key: Tensor, labels: list[int], temperature: float) -> Tensor:
    """The prototype loss of one direction, cluster by cluster of those that occur."""
    present = sorted(set(labels))

    def center(rows: Tensor, cluster: int) -> Tensor:
        members = [unit(row) for row, label in zip(rows, labels, strict=True) if label == cluster]
        return unit(torch.stack(members).mean(dim=0))

    losses = []
    for cluster in present:
        own = center(query, cluster)
        positive = (own @ center(key, cluster) / temperature).exp()
        negatives = [(own @ center(query, other) / temperature).exp() for other in present if other != cluster]
        losses.append(-(positive / (positive + sum(negatives))).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("terms", ["warmup", "all"])
@pytest.mark.parametrize("noise_std", [0.0, 0.05])
def test_step_is_the_formula(terms: str, noise_std: float) -> None:
    options = {"noise_std": noise_std, "temperature": 0.4, "hsd_weight": 0.7, "prototype_weight": 0.3}
    method = small_hadis(**options).double()
    with torch.no_grad():  # the teacher is no longer the student, and biases are not zero
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    views, labels = [view.double() for view in make_views(2)], torch.arange(12) % 3  # cluster 3 is empty
    weights = copied_weights(method)

    given: list[Tensor] = []
    method.predictor.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
    loss, logged = method.training_step(views, labels, terms=terms)
    loss.backward()
    assert len(given) == 2  # one pass and one draw for each direction

    q = [head(backbone(view, weights, "student.0"), weights, "student.1") for view in views]
    k = [head(backbone(view, weights, "teacher.0"), weights, "teacher.1") for view in views]
    noise = [rows - projected.detach() for rows, projected in zip(given, q, strict=True)]
    drawn = torch.cat(noise)
    assert float(drawn.std()) == pytest.approx(noise_std if terms == "all" else 0, rel=0.2, abs=1e-12)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.25 * noise_std + 1e-12)
    p = [head(rows + added, weights, "predictor") for rows, added in zip(q, noise, strict=True)]
    expected: dict[str, list[Tensor]] = {"dsa": [], "hsd": [], "prototype": []}
    for i, j in ((0, 1), (1, 0)):
        expected["dsa"].append(-2 * torch.stack([unit(p[i][row]) @ unit(k[j][row]) for row in range(12)]).mean())
        expected["hsd"].append(plain_hsd(k[j], p[i], 0.4))
        expected["prototype"].append(plain_prototypes(q[i], k[j], labels.tolist(), 0.4))
    means = {name: (first + second) / 2 for name, (first, second) in expected.items()}
    total = means["dsa"] + 0.7 * means["hsd"]
    if terms == "all":
        total = total + 0.3 * means["prototype"]
    else:
        del means["prototype"]
    total.backward()

    for name, value in (means | {"loss": total}).items():
        assert float(logged[name]) == pytest.approx(value.item(), rel=1e-6), name
    assert ("prototype" in logged) == (terms == "all")
    assert_same_gradients(method, weights)


def test_warm_up_has_neither_prototypes_nor_noise() -> None:
    views, labels = make_views(2), torch.arange(12) % 3
    results = []
    for seed, given in ((0, None), (1, labels)):
        method = small_hadis(noise_std=10.0)
        torch.manual_seed(seed)
        loss, terms = method.training_step(views, given, terms="warmup")
        assert "prototype" not in terms
        results.append(loss)
    assert torch.equal(results[0], results[1])


def test_noise_is_drawn_after_warm_up() -> None:
    views, labels = make_views(2), torch.zeros(12, dtype=torch.int64)
    quiet, _ = small_hadis(noise_std=0.0).training_step(views, labels)
    noisy, _ = small_hadis(noise_std=1.0).training_step(views, labels)
    assert not torch.equal(quiet, noisy)


@pytest.mark.parametrize(("hsd_weight", "prototype_weight"), [(0.0, 0.0), (1.0, 0.0), (0.5, 3.0)])
def test_weights_of_the_losses(hsd_weight: float, prototype_weight: float) -> None:
    method = small_hadis(hsd_weight=hsd_weight, prototype_weight=prototype_weight)
    loss, terms = method.training_step(make_views(2), torch.arange(12) % 3)
    expected = terms["dsa"] + hsd_weight * terms["hsd"] + prototype_weight * terms["prototype"]
    torch.testing.assert_close(loss.detach(), expected)


def test_bank_remembers_the_teacher_s_mean_of_both_views() -> None:
    method, views = small_hadis(bank_size=20), make_views(2)
    index = torch.arange(12) + 5
    method.training_step(views, None, index, terms="warmup")  # already
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
    method.training_step(make_views(2), None, index, terms="warmup")
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
    method.after_step(0.5)
    for old, new, student in zip(before, method.teacher.parameters(), method.student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * student, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("progress", "expected"), [(0, 0.996), (1 / 3, 0.997), (0.5, 0.998), (2 / 3, 0.999), (1, 1)])
def test_momentum_rises_to_one(progress: float, expected: float) -> None:
    # 1 - 0.004 (cos(pi t) + 1) / 2; the cosines are 1, 1/2, 0, -1/2 and -1.
    assert rising_momentum(0.996, progress) == pytest.approx(expected, abs=1e-12)
    method = small_hadis(momentum_rises=True)
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1)
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step(progress)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 1 - expected), rtol=0, atol=1e-6)


def test_both_layers_of_the_predictor_begin_small_and_without_bias() -> None:
    method = HaDis(nn.Flatten(), 64, 10)
    for layer in (method.predictor[0], method.predictor[3]):
        assert isinstance(layer, nn.Linear)
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.01)
        assert float(layer.weight.detach().mean()) == pytest.approx(0, abs=1e-4)
        assert not layer.bias.any()


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
    _, terms = method.training_step(make_views(2), terms="warmup")
    message = method.collapse_warning({name: float(term) for name, term in terms.items()})
    assert message is not None
    assert "which is ln 2" in message
    assert "collapsed to a point" in message


def test_a_training_batch_is_no_collapse_and_a_converged_one_is_told_apart() -> None:
    method = small_hadis()
    _, terms = method.training_step(make_views(2), terms="warmup")
    means = {name: float(term) for name, term in terms.items()}
    assert method.collapse_warning(means) is None
    means |= {"hsd": math.log(2), "zero_negative_weight": 1.0, "zero_positive_weight": 1.0, "feature_spread": 0.9}
    assert "converged" in (method.collapse_warning(means) or "")


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\], got 1.5"):
        small_hadis(momentum=1.5)
