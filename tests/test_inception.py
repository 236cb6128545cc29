"""FID, KID and LPIPS: the real classes with random weights, against the libraries' own numbers."""

import json

import numpy as np
import pytest
import torch
from make_data import make_manifest_dataset
from PIL import Image

from diffv2ir import cli
from diffv2ir.inception import WEIGHTS, InceptionView
from diffv2ir.metrics import frechet_distance, kernel_distance

torchmetrics = pytest.importorskip("torchmetrics")
fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

INCEPTION, ALEXNET = WEIGHTS


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Torch hub's cache with both files, as if they had been downloaded; no other test sees it."""
    from torchvision.models import alexnet

    class RandomInception(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            """The weights that the class was made with stay."""

    folder = tmp_path_factory.mktemp("hub")
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    weights = RandomInception("random", ["2048"], feature_extractor_weights_path=str(folder / "empty.pth")).state_dict()
    torch.save(weights, folder / "hub" / "checkpoints" / INCEPTION)
    with torch.device("meta"):
        shapes = alexnet().state_dict()
    weights = {  # the classifier, which LPIPS does not use, takes no room
        name: torch.zeros(1).expand(value.shape) if "classifier" in name else 0.05 * torch.randn(value.shape)
        for name, value in shapes.items()
    }
    torch.save(weights, folder / "hub" / "checkpoints" / ALEXNET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def view(hub):
    return InceptionView("cpu")


@pytest.fixture(scope="module")
def sets():
    generator = np.random.default_rng(0)
    return [[Image.fromarray(generator.integers(low, 256, (96, 96), np.uint8)) for _ in range(2)] for low in (0, 120)]


def tensor(images):
    return torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images])


def test_features_and_kid_are_the_librarys(hub, view, sets):
    """KID over one subset, which is all images."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    network = fidelity.FeatureExtractorInceptionV3("own", ["2048"])
    ours = [view.see(images)[0] for images in sets]
    wanted = [network(tensor(images))[0] for images in sets]
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(ours[0], ours[1])
    expected = kid_features_to_metric(
        *(values.double() for values in wanted), kid_subsets=1, kid_subset_size=2, verbose=False
    )
    assert kernel_distance(*ours) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)


def test_fid_is_the_librarys():
    """On features of few numbers: the library takes the root of a matrix of their size."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    one, other = (torch.from_numpy(values) for values in np.random.default_rng(1).normal(size=(2, 80, 12)))
    other = other * 1.5 + 0.3
    expected = fid_statistics_to_metric(*map(fid_features_to_statistics, (one, other)), verbose=False)
    assert frechet_distance(one, other) == pytest.approx(next(iter(expected.values())), rel=1e-6)


def test_lpips_is_the_librarys(hub, view, sets):
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

    looks = [view.see(images)[1] for images in sets]
    values = view.distances(*looks)
    scaled = [tensor(images) / 255 for images in sets]
    expected = learned_perceptual_image_patch_similarity(*scaled, net_type="alex", normalize=True, reduction="none")
    torch.testing.assert_close(values, expected.flatten())
    assert values.min() > 0 and view.distances(looks[0], looks[0]).abs().max() == 0


def test_they_are_columns_of_their_own(view, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("diffv2ir.inception.InceptionView", lambda device: asked.append(device) or view)
    data = make_manifest_dataset(tmp_path / "data", pairs=3, infrared=0)
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        Image.open(data / "images" / f"{number}.png").convert("L").save(tmp_path / "pictures" / f"scene{number}.png")
    flags = ["--outputs", tmp_path / "pictures", "--fid", "--device", "cpu", "--json", tmp_path / "a.json"]
    assert cli.main(["evaluate", "--data", str(data), "--split", "train", *map(str, flags)]) == 0
    assert asked == ["cpu"]
    overall = json.loads((tmp_path / "a.json").read_text())["model"]["all"]
    assert overall["fid"] is not None and overall["kid"] is not None and overall["lpips"] > 0
    assert overall["fid"] != overall["frechet_efficientnet_lite0"]
    header = capsys.readouterr().out.split("\n\n")[1].splitlines()[0]
    assert header.split() == ["camera", "images", "method", "FID", "KID", "LPIPS"]


def test_missing_weights_are_named(tmp_path, monkeypatch, capsys):
    data = make_manifest_dataset(tmp_path / "data", pairs=2, infrared=0)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(fidelity, "URL_INCEPTION_V3", f"file://{tmp_path}/absent/{INCEPTION}")
    assert cli.main(["evaluate", "--data", str(data), "--split", "train", "--outputs", str(data), "--fid"]) == 2
    error = capsys.readouterr().err
    assert INCEPTION in error and ALEXNET in error and str(tmp_path / "hub" / "checkpoints") in error
