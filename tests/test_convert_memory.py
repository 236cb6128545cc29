"""Conversions hold a few weights at a time: measured in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from official_layout import Autoencoder, ClipText, LatentDiffusion, UNet
from safetensors.torch import load_file, save_file

from diffv2ir.convert.assemble import convert

pytest.importorskip("resource")

# Linux counts, as a process' peak, what its parent holds when it is started: the launcher holds little.
LAUNCHER = "import subprocess, sys; subprocess.run(sys.argv[1:], check=True)"
# Prints the peak of the libraries alone, then that of the conversions, each SOURCE TARGET.
CONVERT = """
import resource, sys
from pathlib import Path
from diffv2ir.convert.assemble import convert

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

print(peak())
for source, target in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    convert(Path(source), Path(target))
print(peak())
"""


def peaks(*arguments):
    """Bytes that a Python process holds at most before and until the end of conversions."""
    command = [sys.executable, "-c", LAUNCHER, sys.executable, "-c", CONVERT, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return map(int, done.stdout.split())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of Stable Diffusion's layout, in float32, most of it in the UNet, as in the true one."""
    with torch.device("meta"):
        model = LatentDiffusion(
            UNet(4, width=128, multiples=(1, 2, 4), context=128), Autoencoder(32, (1, 2), 1), ClipText(195, 128, 2, 16)
        )
    state = {key: torch.zeros(weight.shape) for key, weight in model.state_dict().items()}
    path = tmp_path_factory.mktemp("checkpoint") / "sd.ckpt"
    torch.save({"state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """The same as a diffusers folder, in float32 too."""
    folder = tmp_path_factory.mktemp("folder") / "sd"
    convert(checkpoint, folder, widen=False)
    for path in folder.rglob("*.safetensors"):
        weights = {key: weight.float() for key, weight in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    return folder


def test_peak_is_less_than_one_and_a_half_of_the_model(checkpoint, folder, tmp_path):
    targets = tmp_path / "of-checkpoint", tmp_path / "of-folder"
    base, reached = peaks(checkpoint, targets[0], folder, targets[1])
    used = reached - base
    sizes = {sum(path.stat().st_size for path in target.rglob("*.safetensors")) for target in targets}
    size = min(sizes)
    assert 120e6 < size and max(sizes) < 250e6
    print(f"{used / 1e6:.0f} MB above the libraries' {base / 1e6:.0f} MB, for a model of {size / 1e6:.0f} MB")
    assert used < 1.5 * size
