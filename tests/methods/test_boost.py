"""Boost: its step against plain loops, which images are reliable, where it starts from, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from deepclust_ext.methods import Boost, ClusterHeadMethod, HaDis
from deepclust_ext.methods.boost import BASES, NO_START, reliable_images
from tests.methods.methodsamples import METHODS, NUM_CLUSTERS, make_views, small_backbone, small_boost
from tests.methods.plaintorch import (
    Weights,
    assert_same_gradients,
    backbone,
    copied_weights,
    head,
    head_without_norm,
    unit,
)
from tests.methods.test_hadis import plain_prototypes

BATCH = 16
SMALL = {"hidden_dim": 16, "embedding_dim": 8}
LABELS = torch.arange(BATCH) % 3  # cluster 3 is empty


def plain_rows(images: Tensor, weights: Weights, at: str, base: str) -> Tensor:
    """Return unit rows of a network: those of HaDis, or of SACC with the roots of its shares."""
    features = backbone(images, weights, f"{at}.backbone")
    if base == "HaDis":
        return torch.stack([unit(row) for row in head(features, weights, f"{at}.row_head")])
    rows = head_without_norm(features, weights, f"{at}.row_head")
    powers = head_without_norm(features, weights, f"{at}.share_head").exp()
    both = [torch.cat([unit(row), (own / own.sum()).sqrt()]) for row, own in zip(rows, powers, strict=True)]
    return torch.stack(both) / 2**0.5


def plain_reliable(rows: Tensor, labels: list[int], most: int, share: float) -> tuple[list[bool], list[int]]:
    """Return which images are reliable and how many neighbors each is asked for, image by image."""
    depths = []
    for i, row in enumerate(rows):
        near = sorted((j for j in range(len(rows)) if j != i), key=lambda j: -float(row @ rows[j]))[:most]
        agree = [labels[j] == labels[i] for j in near]
        depths.append(agree.index(False) if False in agree else most)
    asked = []
    for label in labels:
        own = [depth for depth, other in zip(depths, labels, strict=True) if other == label]
        enough = [k for k in range(1, most + 1) if sum(depth >= k for depth in own) >= share * len(own)]
        asked.append(max(enough, default=1))
    return [depth >= k for depth, k in zip(depths, asked, strict=True)], asked


def grouped_views() -> list[Tensor]:
    """Return two views of images that are alike where their label is, the third group least of all."""
    generator = torch.Generator().manual_seed(4)
    groups = torch.randn(3, 1, 8, 8, generator=generator)[LABELS]
    noise = torch.tensor([0.3, 0.7, 2.0])[LABELS][:, None, None, None]
    images = groups + noise * torch.randn(BATCH, 1, 8, 8, generator=generator)
    return [(images + 0.3 * torch.randn(BATCH, 1, 8, 8, generator=generator)).double() for _ in range(2)]


@pytest.mark.parametrize("base", ["HaDis", "SACC"])
def test_step_is_the_formula(base: str) -> None:
    # So cold a softmax draws the nearest neighbor.
    drawn = {"noise_std": 0.0, "neighbor_temperature": 1e-6, "num_neighbors": 4}
    method = small_boost(base=base, temperature=0.4, neighbor_weight=0.7, prototype_weight=0.3, **drawn).double()
    with torch.no_grad():  # the target is no longer the student, and the predictor not the identity
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    views, labels = grouped_views(), LABELS.tolist()
    weights = copied_weights(method)
    loss, logged = method.training_step(views, LABELS)
    loss.backward()

    q = [plain_rows(view, weights, "student", base) for view in views]
    t = [plain_rows(view, weights, "target", base).detach() for view in views]
    p = [rows + head(rows, weights, "predictor.layers") for rows in q]
    means = torch.stack([unit(a + b) for a, b in zip(*t, strict=True)])
    reliable, asked = plain_reliable(means, labels, 4, 0.5)
    assert 0 < sum(reliable) < BATCH
    assert len(set(asked)) > 1
    nearest = []
    for i, row in enumerate(means):
        others = [j for j in range(BATCH) if j != i and reliable[j]]
        nearest.append(means[max(others, key=lambda j: float(row @ means[j]))])
    trusted = [i for i in range(BATCH) if reliable[i]]
    expected: dict[str, list[Tensor]] = {"instance": [], "neighbor": [], "prototype": []}
    for i, j in ((0, 1), (1, 0)):
        pulled = [unit(row) for row in p[i]]
        expected["instance"].append(-2 * torch.stack([a @ b for a, b in zip(pulled, t[j], strict=True)]).mean())
        expected["neighbor"].append(-2 * torch.stack([a @ b for a, b in zip(pulled, nearest, strict=True)]).mean())
        expected["prototype"].append(
            plain_prototypes(q[i][trusted], t[j][trusted], [labels[place] for place in trusted], 0.4)
        )
    terms = {name: (first + second) / 2 for name, (first, second) in expected.items()}
    total = terms["instance"] + 0.7 * terms["neighbor"] + 0.3 * terms["prototype"]
    total.backward()
    for name, value in (terms | {"loss": total}).items():
        assert float(logged[name]) == pytest.approx(value.item(), rel=1e-6), name
    assert float(logged["reliable"]) == pytest.approx(sum(reliable) / BATCH)
    assert float(logged["asked_neighbors"]) == pytest.approx(sum(asked) / BATCH)
    assert_same_gradients(method, weights)


def test_k_is_what_half_of_a_cluster_reaches() -> None:
    # Of cluster 0 two reach 3, one 1 and one 0; of cluster 1 one reaches 1 and the others none; 2 is empty.
    near = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 4, 1], [5, 0, 1], [5, 0, 1], [0, 1, 2], [0, 4, 5], [1, -1, -1]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    reliable, asked = reliable_images(near, labels, 3, 0.5)
    assert asked.tolist()[:2] == [3, 1]
    assert reliable.tolist() == [True, True, False, False, True, False, False, False]
    reliable, asked = reliable_images(near, labels, 3, 0.75)
    assert asked.tolist()[:2] == [1, 1]
    assert reliable.tolist() == [True, True, True, False, True, False, False, False]


def test_without_a_reliable_neighbor_an_image_is_drawn_to_itself() -> None:
    method = small_boost(noise_std=0.0)
    views, labels = make_views(2, NUM_CLUSTERS), torch.arange(NUM_CLUSTERS)
    with torch.no_grad():
        rows = [method.student(view) for view in views]  # at first the target's too, and the predictor's
        means = normalize(rows[0] + rows[1], dim=1)
        expected = -2 * torch.stack([cosine_similarity(row, means).mean() for row in rows]).mean()
    _, terms = method.training_step(views, labels)
    assert float(terms["neighbor"]) == pytest.approx(float(expected), rel=1e-5)
    assert (float(terms["reliable"]), float(terms["prototype"])) == (0, 0)


def test_the_noise_is_on_the_neighbors() -> None:
    views = [view.float() for view in grouped_views()]
    quiet, noisy = (small_boost(noise_std=std).training_step(views, LABELS)[1] for std in (0.0, 1.0))
    assert quiet["instance"] == noisy["instance"]
    assert quiet["prototype"] == noisy["prototype"]
    assert quiet["neighbor"] < noisy["neighbor"]


def small_base(name: str) -> Any:
    method = METHODS[name.lower()].method()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


@pytest.mark.parametrize("base", BASES)
def test_it_starts_with_the_rows_of_the_trained_network(base: str) -> None:
    trained, images = small_base(base), make_views(1, BATCH)[0]
    boost = Boost(METHODS[base.lower()].backbone(), trained.feature_dim, NUM_CLUSTERS, base=base, **model_of(trained))
    boost.start_from(trained)
    expected = trained.embed(images)
    if isinstance(trained, ClusterHeadMethod):
        expected = torch.cat([expected, trained.assign(images).sqrt()], dim=1) / 2**0.5
    torch.testing.assert_close(boost.embed(images), expected)
    torch.testing.assert_close(boost.predictor(expected), expected)
    # Nothing is shared with the trained method.
    before = [weight.clone() for weight in trained.state_dict().values() if isinstance(weight, Tensor)]
    optimizer = boost.make_optimizer(BATCH)
    loss, _ = boost.training_step(make_views(2, BATCH), LABELS)
    loss.backward()
    optimizer.step()
    boost.after_step()
    after = [weight for weight in trained.state_dict().values() if isinstance(weight, Tensor)]
    assert all(map(torch.equal, before, after))


def test_a_subclass_of_the_base_is_taken() -> None:
    class Own(HaDis):
        """A user's own variant."""

    base = small_base("HaDis")
    trained = Own(small_backbone(), 36, NUM_CLUSTERS, hidden_dim=16, embedding_dim=8)
    trained.load_state_dict(base.state_dict())
    boost, images = small_boost(), make_views(1, BATCH)[0]
    boost.start_from(trained)
    torch.testing.assert_close(boost.embed(images), base.embed(images))
    with pytest.raises(ValueError, match="start: expected the network of SACC, got that of Own"):
        small_boost(base="SACC").start_from(trained)


def model_of(trained: Any) -> dict[str, Any]:
    others = ("feature_dim", "num_clusters")
    return {"base_model": {key: value for key, value in trained.arguments().items() if key not in others}}


def test_a_start_has_to_be_of_the_base() -> None:
    with pytest.raises(ValueError, match="start: expected the network of HaDis, got that of SACC"):
        small_boost().start_from(small_base("SACC"))
    with pytest.raises(ValueError, match="start: expected the network that base_model describes, got another"):
        small_boost(base_model={"hidden_dim": 16, "embedding_dim": 4}).start_from(small_base("HaDis"))


def test_what_is_no_base_is_refused() -> None:
    with pytest.raises(ValueError, match="base: expected one of HaDis, SACC, PICI, CLC, got 'TURTLE'"):
        small_boost(base="TURTLE")
    with pytest.raises(ValueError, match="base_model: expected arguments of HaDis, hidden_dim, .* got 'queue_size'"):
        small_boost(base_model={"queue_size": 3})
    with pytest.raises(TypeError, match="^base_model: expected arguments by name, got str$"):
        small_boost(base_model="queue_size")
    assert "deepclust-ext boost RUN" in NO_START


def test_frozen_parts_of_a_backbone_stay_frozen() -> None:
    network = small_backbone()
    network[0].requires_grad_(False)  # type: ignore[index]
    method = Boost(network, 36, NUM_CLUSTERS, base_model=SMALL, hidden_dim=16)
    learns = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert "student.backbone.0.weight" not in learns
    assert {"student.backbone.1.weight", "student.row_head.0.weight"} <= learns


def test_a_share_of_zero_has_a_finite_gradient() -> None:
    method = small_boost(base="SACC")
    assert isinstance(method.student.share_head, nn.Sequential)
    final = method.student.share_head[2]
    assert isinstance(final, nn.Linear)
    with torch.no_grad():
        final.bias[0] += 1e4
    loss, _ = method.training_step(make_views(2, BATCH), LABELS)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
