"""The teacher of phase 2: its training, its pictures, and what it is asked for."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from make_data import draw_scene, make_manifest_dataset, make_start_folder
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from diffv2ir.data import DataError, read_examples
from diffv2ir.edges import brightness
from diffv2ir.imaging import open_image, to_tensor
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.training import loop as loop_module
from diffv2ir.training.cache import ViewConfig
from diffv2ir.training.diffusion import PromptEncoder
from diffv2ir.training.fresh import FreshConfig
from diffv2ir.training.loop import LoopConfig, TrainingError
from diffv2ir.training.pack import pack_bundle
from diffv2ir.training.phases import LoraSettings, PhaseConfig, check_teacher, train_phase
from diffv2ir.training.pictures import PictureConfig
from diffv2ir.training.teacher import (
    Member,
    PictureDecoder,
    PictureNetwork,
    Teacher,
    TeacherConfig,
    load_network,
    teacher_bands,
    teacher_hash,
    train_teacher,
)
from diffv2ir.vlum.prompt import BANDS

LOOP = LoopConfig(steps=2, batch_size=4, learning_rate=3e-3, warmup_steps=1, ema_decay=0.5)
CONFIG = TeacherConfig(LOOP, ViewConfig(resize=72, crop=64, variants=2), (Member(width=16),))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return read_examples(make_manifest_dataset(tmp_path_factory.mktemp("data")), split="train")


@pytest.fixture(scope="module")
def two_bands(examples):
    """The same scenes; what was seen of the odd ones was near infrared, the opposite of what thermal cameras see."""
    return [replace(example, band="NIR" if example.source == "odd" else "LWIR") for example in examples]


def asked(folder, example, band):
    """The teacher's picture of a photo, (H, W) in [0, 1]."""
    photo = (to_tensor(open_image(example.visible))[None] + 1) / 2
    return Teacher(folder).pictures(photo, [band])[0, 0].numpy()


class Convolutions(TorchDispatchMode):
    """Where the weights of each convolution lie, and of what type they are, as it is computed."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.found.append((args[1].data_ptr(), args[1].dtype))
        return function(*args, **(kwargs or {}))


def test_depthwise_convolutions_learn_in_float32_on_a_cpu():
    """Their gradients in bfloat16 take three times as long; what they answer is of the precision asked for."""
    network = copy.deepcopy(load_network())
    kinds = {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda layer, given, answer, name=name: kinds.update({name: answer.dtype}))
    photos = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = network(photos)
    assert set(kinds.values()) == {torch.float32}
    depthwise = {layer.weight.data_ptr() for layer in network.modules() if getattr(layer, "groups", 1) > 1}
    with torch.autocast("cpu", torch.bfloat16), Convolutions() as seen:
        answer = network(photos)
    assert {dtype for pointer, dtype in seen.found if pointer in depthwise} == {torch.float32}
    assert len(depthwise) == sum(dtype == torch.float32 for _, dtype in seen.found)
    assert set(kinds.values()) == {torch.bfloat16}
    assert torch.nn.functional.cosine_similarity(answer.float(), expected)[0] > 0.99


def test_one_teacher_knows_each_band(two_bands, tmp_path):
    """Near infrared is the photo itself here, thermal its inverse: the one network answers as it is asked."""
    odd = [replace(e, infrared=e.visible) if e.band == "NIR" and e.visible else e for e in two_bands]
    loop = replace(LOOP, steps=120, batch_size=6, learning_rate=1e-2, warmup_steps=5)
    config = replace(CONFIG, loop=loop, members=(Member(width=16, dropout=0.0),))
    assert train_teacher(odd, tmp_path, config) == tmp_path
    assert teacher_bands(tmp_path) == Teacher(tmp_path).bands == BANDS == ("LWIR", "NIR")
    assert Teacher(tmp_path).side == 64
    for example in (e for e in odd if e.visible):
        photo = brightness(open_image(example.visible)).ravel()
        seen_thermal, seen_near = (
            np.corrcoef(asked(tmp_path, example, band).ravel(), photo)[0, 1] for band in BANDS
        )  # fmt: skip
        assert seen_near > 0.3 and seen_thermal < -0.3


def test_a_finished_teacher_is_not_trained_again(examples, tmp_path, monkeypatch):
    pair = replace(CONFIG, members=CONFIG.members * 2)
    train_teacher(examples, tmp_path, pair)
    hashes = teacher_hash(tmp_path)
    trained, run = [], loop_module.Loop.run
    monkeypatch.setattr(loop_module.Loop, "run", lambda self: trained.append(self.name) or run(self))
    train_teacher(examples, tmp_path, pair)
    assert not trained and teacher_hash(tmp_path) == hashes
    with pytest.raises(TrainingError, match="the configuration has no member1, .* has: choose another output folder"):
        train_teacher(examples, tmp_path, CONFIG)
    with pytest.raises(TrainingError, match="member1 was trained with another width"):
        train_teacher(examples, tmp_path, replace(CONFIG, members=(Member(width=16), Member(width=8))))

    # A member that is missing is trained, the others are kept; each has its own random numbers.
    train_teacher(examples, tmp_path, replace(CONFIG, members=CONFIG.members * 3))
    assert trained == ["teacher"] and teacher_hash(tmp_path)[:2] == hashes
    assert len(set(teacher_hash(tmp_path))) == 3


def test_it_learns(examples, tmp_path):
    """Infrared is the photo's inverse here: after some steps the error is far below that of the best constant."""
    loop = replace(LOOP, steps=60, batch_size=6, learning_rate=1e-2, warmup_steps=5, log_every=10)
    train_teacher(examples, tmp_path, replace(CONFIG, loop=loop, members=(Member(width=16, dropout=0.0),)))
    history = json.loads((tmp_path / "member0" / "history.json").read_text())["history"]
    levels = [np.asarray(Image.open(example.infrared), dtype=float) / 255 for example in examples if example.visible]
    assert history[-1]["loss"] < 0.3 * np.mean([level.var() for level in levels])


@pytest.mark.parametrize("size", [(64, 64), (70, 66), (66, 98), (34, 200)])
def test_decoder_and_pictures_for_any_size(size, examples, tmp_path):
    train_teacher(examples, tmp_path, CONFIG)
    photos = torch.stack([(to_tensor(draw_scene(seed, size)[0]) + 1) / 2 for seed in range(2)])
    pictures = Teacher(tmp_path).pictures(photos, ["LWIR", "LWIR"])
    assert pictures.shape == (2, 1, size[1], size[0])
    assert 0 <= pictures.min() and pictures.max() <= 1 and pictures[0].std() > 0
    decoder = PictureDecoder(16, 0.2).eval()
    maps = [
        torch.randn(2, channels, 16 // 2**level, 12 // 2**level) for level, channels in enumerate((24, 40, 112, 320))
    ]
    assert decoder(torch.randn(2, 3, 16, 12), maps, torch.randn(2, 1280)).shape == (2, 1, 16, 12)


def test_imagenets_classes_are_left_out():
    member = PictureNetwork(load_network(), PictureDecoder(16, 0.2))
    assert load_network().state_dict().keys() - member.network.state_dict().keys() == {"_fc.weight", "_fc.bias"}


def test_an_unfinished_teacher_is_named(tmp_path):
    with pytest.raises(TrainingError, match="holds no finished teacher: python -m train.teacher"):
        Teacher(tmp_path)


def test_the_prompt_says_the_band_of_the_target(two_bands, bundle_folder, tmp_path, monkeypatch):
    """Both bands are asked for, each with the teacher's picture of it, and a style knows the band of its cameras."""
    prompts = []
    encode = PromptEncoder.__call__
    monkeypatch.setattr(PromptEncoder, "__call__", lambda self, texts: prompts.extend(texts) or encode(self, texts))
    train_teacher(two_bands, tmp_path / "teacher", CONFIG)
    loop = LoopConfig(steps=6, batch_size=4, learning_rate=1e-3, warmup_steps=1, ema_decay=0.5)
    view = ViewConfig(resize=36, crop=32, variants=2)
    config = PhaseConfig("2", loop, view=view, map_style="union", fresh=FreshConfig(other_band=0.5), dropout=0.0)
    start = make_start_folder(bundle_folder, tmp_path / "start")
    options = {"cache": tmp_path / "cache", "vlum": bundle_folder, "teacher": tmp_path / "teacher"}
    general = train_phase(config, two_bands, start, tmp_path / "two", **options)
    assert {prompt.rsplit(" into ")[1] for prompt in prompts} == {"infrared", "near infrared"}
    assert json.loads((general / "model_index.json").read_text())["bands"] == {}
    prompts.clear()
    style = replace(config, phase="3", style="near", sources=("odd",), lora=LoraSettings(2, 2), fresh=FreshConfig())
    near = train_phase(style, two_bands, general, tmp_path / "three", **options)
    assert {prompt.rsplit(" into ")[1] for prompt in prompts} == {"near infrared"}
    assert json.loads((near / "model_index.json").read_text())["bands"] == {"near": "NIR"}
    packed = pack_bundle(general, {"near": near}, tmp_path / "bundle", "both", {})
    pipe = DiffV2IRPipeline.from_pretrained(packed)
    assert [pipe.band(pipe.default_settings.replace(style=style)) for style in pipe.styles] == ["LWIR", "NIR"]


def test_what_does_not_fit_a_teacher_is_named(examples, bundle_folder, tmp_path):
    config = PhaseConfig("2", LOOP, view=CONFIG.view, fresh=FreshConfig())
    for name in ("real", "mix", "other_band"):
        for share in (-0.1, 1.5):
            with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got {share}"):
                FreshConfig(**{name: share})
    with pytest.raises(ValueError, match="uses must be at least 1, got 0"):
        FreshConfig(uses=0)
    with pytest.raises(ValueError, match="seeing must be at least 0, got -1"):
        FreshConfig(seeing=-1)
    for phase, more in (("base", {}), ("1", {"lora": LoraSettings()})):
        with pytest.raises(ValueError, match="fresh is for phases 2 and 3"):
            PhaseConfig(phase, LOOP, fresh=FreshConfig(), **more)
    for fresh in (None, FreshConfig()):
        with pytest.raises(
            ValueError, match="picture needs views with what a camera saw: set fresh, with real above 0"
        ):
            replace(config, fresh=fresh, picture=PictureConfig())
    with pytest.raises(ValueError, match="other_band needs prompts that say the band"):
        replace(config, fresh=FreshConfig(other_band=0.2), fixed_prompt="")

    def train(teacher):
        train_phase(config, examples, bundle_folder, tmp_path / "run", cache=tmp_path / "cache", teacher=teacher)

    with pytest.raises(ValueError, match="output of python -m train.teacher, unless real is 1: none was given"):
        train(None)
    with pytest.raises(TrainingError, match="nowhere holds no finished teacher"):
        train(tmp_path / "nowhere")
    train_teacher(examples, tmp_path / "thermal", CONFIG)
    with pytest.raises(DataError, match="thermal has seen no pairs of NIR"):
        check_teacher(config, tmp_path / "thermal", [replace(examples[0], band="NIR")])


def test_a_missing_network_is_explained(examples, tmp_path, monkeypatch):
    def missing():
        raise ModuleNotFoundError("pip install it")

    monkeypatch.setattr("diffv2ir.training.teacher.imagenet_network", missing)
    with pytest.raises(TrainingError, match="pip install it"):
        train_teacher(examples, tmp_path, CONFIG)
    with pytest.raises(ValueError, match="at least one of members"):
        replace(CONFIG, members=())
    with pytest.raises(ValueError, match="width must be a multiple of 8, got 20"):
        Member(width=20)


@pytest.mark.parametrize("finetune", [False, True])
def test_imagenet_weights_learn_where_that_is_asked_for(examples, tmp_path, finetune):
    """Its statistics stay those of ImageNet, and the network that others use stays as it is."""
    before = {name: value.clone() for name, value in load_network().state_dict().items()}
    member = Member(finetune, width=16, steps=1, learning_rate=1e-2)
    train_teacher(examples, tmp_path, replace(CONFIG, members=(Member(width=16), member)))
    after = load_file(tmp_path / "member1" / "teacher.safetensors")
    changed = {
        name for name, value in before.items() if "_fc" not in name and not value.equal(after[f"network.{name}"])
    }
    statistics = {name for name in changed if "running" in name or "tracked" in name}
    assert bool(changed) == finetune and not statistics
    assert all(value.equal(before[name]) for name, value in load_network().state_dict().items())
    histories = [json.loads((tmp_path / f"member{n}" / "history.json").read_text()) for n in range(2)]
    assert [history["config"]["steps"] for history in histories] == [LOOP.steps, 1]
    assert [history["config"]["seed"] for history in histories] == [0, 1]
