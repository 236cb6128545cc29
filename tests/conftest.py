"""What tests share. What takes seconds to import is imported where it is used: the process that hands out the tests
reads this file, too."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline


def pytest_xdist_auto_num_workers(config) -> int:
    """One more than there are cores: some tests wait for a browser, or for processes of their own."""
    return (os.cpu_count() or 1) + 1


# No test is about time: a busy machine must not fail one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# One thread each, here and in the processes that tests start: there are more workers than cores. Read by torch when it
# is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# No file of a test has to outlive a power failure.
os.fsync = lambda descriptor: None


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """What a test measures does not reach the user's cache, and the user's environment does not reach the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        for name in ("DIFFV2IR_BRANCHES", "DIFFV2IR_TINY"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def new_unet():
    """Makes the bundle's UNet anew, with other input channels or another seed if asked."""
    from make_bundle import make_unet

    return make_unet


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory) -> Path:
    """A saved bundle with the style "night". Tests that change it must copy it first."""
    from make_bundle import make_bundle

    return make_bundle(tmp_path_factory.mktemp("bundle") / "mini", tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def grown_folder(bundle_folder, tmp_path_factory) -> Path:
    """The bundle with base and phase 1."""
    from make_bundle import grow

    return grow(shutil.copytree(bundle_folder, tmp_path_factory.mktemp("grown") / "bundle"))


@pytest.fixture(scope="session")
def _loaded(bundle_folder) -> DiffV2IRPipeline:
    from diffv2ir.pipeline import DiffV2IRPipeline

    return DiffV2IRPipeline.from_pretrained(bundle_folder)


@pytest.fixture
def pipe(_loaded) -> DiffV2IRPipeline:
    """The bundle, loaded once for all tests; comes with the general weights."""
    _loaded.set_style("general")
    return _loaded


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A smooth coloured picture of 90 x 70 pixels."""
    y, x = np.mgrid[0:70, 0:90]
    channels = [128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7), 2.0 * x + y]
    return Image.fromarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def conditioning(_loaded, photo):
    return _loaded.prepare(photo, caption="a street with a car")


@pytest.fixture(scope="module")
def served(bundle_folder):
    """The page on a free port of this machine, with a pipeline of its own."""
    from diffv2ir.pipeline import DiffV2IRPipeline
    from diffv2ir.ui import LAUNCH_OPTIONS, Model, build_demo

    pipe = DiffV2IRPipeline.from_pretrained(bundle_folder)
    demo = build_demo(Model.ready(pipe))
    demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)
    yield demo, pipe
    demo.close()


@pytest.fixture
def photo_file(photo, tmp_path):
    path = tmp_path / "street.png"
    photo.save(path)
    return path
