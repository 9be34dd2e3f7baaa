"""What RandomViews draws: torchvision's distributions, by two-sample tests, and the same numbers wherever it runs."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.stats import binomtest, chisquare, ks_2samp
from torch import Tensor

from deepclust_ext.data import OPERATIONS, STEPS, RandomViews

COUNT = 4000
JITTER = ("brightness", "contrast", "saturation", "hue")
UNLIKELY = 1e-4  # tests are seeded: this is how unlikely the numbers of a right program may be


def drawn(height: int = 48, width: int = 64, count: int = COUNT, **settings: Any) -> dict[str, Tensor]:
    return RandomViews(32, **settings).draw(torch.tensor([[height, width]]).expand(count, -1))


def applied(parameters: dict[str, Tensor], step: str) -> tuple[Tensor, Tensor]:
    """Return which images have a step (B,), and its strengths where they do."""
    steps, strengths = parameters["steps"], parameters["strengths"]
    where = steps == STEPS.index(step)
    return where.any(dim=1), strengths[where]


def same_distribution(first: Any, second: Any) -> None:
    result: Any = ks_2samp(np.asarray(first, dtype=float), np.asarray(second, dtype=float), method="asymp")
    assert result.pvalue > UNLIKELY, result


def share(hits: Tensor, probability: float) -> None:
    assert binomtest(int(hits.sum()), len(hits), probability).pvalue > UNLIKELY


class TestAgainstTorchvision:
    @pytest.fixture(autouse=True)
    def transforms(self) -> Any:
        return pytest.importorskip("torchvision.transforms.v2", reason="torchvision is missing", exc_type=ImportError)

    # The last two have no fitting crop in ten tries most of the time.
    @pytest.mark.parametrize(("height", "width"), [(48, 64), (32, 32), (20, 90), (8, 100), (90, 7)])
    def test_crops(self, transforms: Any, height: int, width: int) -> None:
        boxes = drawn(height, width)["boxes"]
        crop, image = transforms.RandomResizedCrop(32), torch.empty(3, height, width)
        make: Any = crop.make_params if hasattr(crop, "make_params") else crop._get_params
        theirs = [make([image]) for _ in range(COUNT)]
        for place, name in enumerate(("top", "left", "height", "width")):
            same_distribution(boxes[:, place], [box[name] for box in theirs])
        area = boxes[:, 2] * boxes[:, 3]
        same_distribution(area, [box["height"] * box["width"] for box in theirs])
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] >= 1).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor([height, width])).all()

    def test_jitter(self, transforms: Any) -> None:
        parameters = drawn(jitter=(0.4, 0.8, 1.2, 0.1), jitter_p=1.0)
        jitter = transforms.ColorJitter(0.4, 0.8, 1.2, 0.1)
        make: Any = jitter.make_params if hasattr(jitter, "make_params") else jitter._get_params
        theirs = [make([]) for _ in range(COUNT)]
        for name in JITTER:
            everywhere, strengths = applied(parameters, name)
            assert everywhere.all()
            same_distribution(strengths, [one[f"{name}_factor"] for one in theirs])
        orders = Counter(tuple(row) for row in parameters["steps"][:, :4].tolist())
        assert len(orders) == math.factorial(4)
        assert chisquare(list(orders.values())).pvalue > UNLIKELY

    def test_blur(self, transforms: Any) -> None:
        blurred, sigmas = applied(drawn(blur_p=0.5, blur_sigma=(0.1, 2.0)), "blur")
        share(blurred, 0.5)
        blur = transforms.GaussianBlur(23, (0.1, 2.0))
        make: Any = blur.make_params if hasattr(blur, "make_params") else blur._get_params
        same_distribution(sigmas, [make([])["sigma"][0] for _ in range(COUNT)])


def test_how_often() -> None:
    parameters = drawn(flip_p=0.3, jitter_p=0.8, grayscale_p=0.2)
    share(parameters["flips"], 0.3)
    share(applied(parameters, "gray")[0], 0.2)
    share(applied(drawn(solarize_p=0.2), "solarize")[0], 0.2)
    jittered = applied(parameters, "hue")[0]
    share(jittered, 0.8)
    for name in ("brightness", "contrast", "saturation"):
        assert torch.equal(applied(parameters, name)[0], jittered)  # all four or none
    assert not applied(parameters, "blur")[0].any()


def test_parameters_are_independent() -> None:
    parameters = drawn(jitter_p=1.0, blur_p=1.0)
    columns: list[NDArray[Any]] = [parameters["flips"].numpy(), parameters["boxes"][:, 0].numpy()]
    columns += [applied(parameters, name)[1].numpy() for name in (*JITTER, "blur")]
    correlations = np.corrcoef(np.stack(columns).astype(float)) - np.eye(len(columns))
    assert np.abs(correlations).max() < 4.5 / math.sqrt(COUNT)


def test_steps_come_in_the_papers_order() -> None:
    always: dict[str, Any] = {"jitter_p": 1.0, "grayscale_p": 1.0, "blur_p": 1.0, "solarize_p": 1.0, "operation_p": 1.0}
    steps = drawn(**always, num_operations=2)["steps"]
    assert steps.shape == (COUNT, 9)
    assert set(steps[:, :4].flatten().tolist()) == {STEPS.index(name) for name in JITTER}
    assert (steps[:, 4] == STEPS.index("gray")).all()
    assert (steps[:, 5] == STEPS.index("blur")).all()
    assert (steps[:, 6] == STEPS.index("solarize")).all()


def test_solarized_as_by_pillow() -> None:
    still: dict[str, Any] = {"scale": (1, 1), "ratio": (1, 1), "flip_p": 0.0, "jitter_p": 0.0, "grayscale_p": 0.0}
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    views = RandomViews(16, **still, solarize_p=1.0)(images)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(images[0, 0].numpy())))
    assert np.array_equal((views[0, 0] * 255).round().numpy(), expected)


def test_operations() -> None:
    parameters = drawn(jitter_p=0.0, grayscale_p=0.0, num_operations=5)
    steps, strengths = parameters["steps"][:, -5:], parameters["strengths"][:, -5:]
    # Half are applied, and one of 14 is the identity.
    share((steps > 0).flatten(), 0.5 * 13 / 14)
    counts = Counter(steps[steps > 0].tolist())
    assert len(counts) == 13
    assert chisquare(list(counts.values())).pvalue > UNLIKELY
    for step, strength, either in OPERATIONS.values():
        if step == "none":
            continue
        found = strengths[steps == STEPS.index(step)]
        values = [strength(level, 32) for level in range(1, 10)]
        expected = Counter(np.float32(sign * value) for value in values for sign in ((1, -1) if either else (1,)))
        seen = Counter(found.numpy().tolist())
        assert set(seen) == {float(value) for value in expected}, step
        total = sum(expected.values())
        ratios = [len(found) * expected[np.float32(value)] / total for value in seen]
        if len(seen) > 1:
            assert chisquare(list(seen.values()), ratios).pvalue > UNLIKELY, step


def test_what_a_setting_never_changes_is_no_step() -> None:
    parameters = drawn(jitter=(0.4, 0.0, 0.4, 0.0), jitter_p=1.0, grayscale_p=0.0)
    assert not applied(parameters, "contrast")[0].any()
    assert not applied(parameters, "hue")[0].any()
    assert applied(parameters, "brightness")[0].all()


def test_every_image_has_its_own_size() -> None:
    sides = torch.tensor([[10, 200], [200, 10], [50, 50]])
    view = RandomViews(32)
    for _ in range(50):
        boxes = view.draw(sides)["boxes"]
        assert (boxes[:, :2] + boxes[:, 2:] <= sides).all()


def test_a_generator_or_the_global_one_decides() -> None:
    images = torch.rand(5, 3, 20, 20)
    first = RandomViews(16, generator=torch.Generator().manual_seed(3))(images)
    state = torch.get_rng_state()
    second = RandomViews(16, generator=torch.Generator().manual_seed(3))(images)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)  # the global one is not touched
    torch.manual_seed(3)
    assert torch.equal(RandomViews(16)(images), first)


def test_a_view_is_the_ops_view_of_what_was_drawn() -> None:
    from deepclust_ext import augment_views

    images = (torch.rand(6, 3, 20, 24) * 255).to(torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    settings: dict[str, Any] = {"blur_p": 0.5, "blur_kernel": 5, "num_operations": 3, "mean": mean, "std": std}
    torch.manual_seed(5)
    views = RandomViews(16, **settings)(images)
    torch.manual_seed(5)
    parameters = RandomViews(16, **settings).draw(torch.tensor([[20, 24]] * 6))
    expected = augment_views(images, size=16, blur_kernel=5, mean=mean, std=std, **parameters)  # type: ignore[arg-type]
    assert torch.equal(views, expected)
    listed = RandomViews(16, **settings)
    torch.manual_seed(5)
    assert torch.equal(listed(list(images)), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 3, 13])
def test_any_kind_of_image(dtype: torch.dtype, channels: int) -> None:
    for height, width in ((1, 1), (1, 40), (8, 8)):
        images = (torch.rand(3, channels, height, width) * (255 if dtype == torch.uint8 else 1)).to(dtype)
        view = RandomViews(8, blur_p=1.0, num_operations=5, operation_p=1.0)
        views = view(images)
        assert views.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
        assert views.shape == (3, channels, 8, 8)
        assert views.isfinite().all()
        assert 0 <= views.min() <= views.max() <= 1 + 1e-6
