"""The teacher of phase 2: its pictures, its training, and what they change in the latents."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_vae
from make_data import draw_scene, make_manifest_dataset, make_start_folder
from PIL import Image
from safetensors.torch import load_file

from diffv2ir.data import DataError, read_examples
from diffv2ir.imaging import to_tensor
from diffv2ir.pipeline import DiffV2IRPipeline, latent_stride
from diffv2ir.training import loop as loop_module
from diffv2ir.training import teacher as teacher_module
from diffv2ir.training.cache import (
    LatentCache,
    Mixer,
    PictureFolder,
    Taught,
    ViewConfig,
    Views,
    encode_mode,
    file_hash,
)
from diffv2ir.training.diffusion import PromptEncoder
from diffv2ir.training.loop import LoopConfig, TrainingError
from diffv2ir.training.pack import pack_bundle
from diffv2ir.training.phases import LoraSettings, PhaseConfig, check_teacher, train_phase
from diffv2ir.training.teacher import (
    Member,
    PictureDecoder,
    PictureNetwork,
    Teacher,
    TeacherConfig,
    load_network,
    predict,
    teacher_bands,
    train_teacher,
)
from diffv2ir.vlum.prompt import BANDS

LOOP = LoopConfig(steps=2, batch_size=4, learning_rate=3e-3, warmup_steps=1, ema_decay=0.5)
CONFIG = TeacherConfig(LOOP, ViewConfig(resize=72, crop=64, variants=2), (Member(width=16),))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return read_examples(make_manifest_dataset(tmp_path_factory.mktemp("data")), split="train")


@pytest.fixture(scope="module")
def taught(examples, tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher")
    return PictureFolder(train_teacher(examples, run, replace(CONFIG, members=CONFIG.members * 2)))


@pytest.fixture
def drawn(examples, tmp_path):
    """A teacher's pictures, in both bands, without a teacher."""
    pictures = PictureFolder(tmp_path / "pictures")
    for number, example in enumerate(examples):
        for offset, band in enumerate(BANDS):
            if example.visible:
                path = pictures.path(example, band)
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_scene(100 * (1 + offset) + number)[1].save(path)
    return pictures


@pytest.fixture(scope="module")
def two_bands(examples):
    """The same scenes; what was seen of the odd ones was near infrared, the opposite of what thermal cameras see."""
    return [replace(example, band="NIR" if example.source == "odd" else "LWIR") for example in examples]


def test_every_photo_has_a_gray_picture_of_its_size(examples, taught):
    pairs = [example for example in examples if example.kind == "pairs"]
    assert len(list(taught.folder.rglob("*.png"))) == len(pairs)
    for example in pairs:
        with Image.open(taught.path(example, "LWIR")) as picture, Image.open(example.visible) as photo:
            assert (picture.mode, picture.size) == ("L", photo.size)


def test_one_teacher_has_a_picture_of_every_photo_in_each_band(two_bands, tmp_path):
    """Near infrared is the photo itself here, thermal its inverse: the one network answers as it is asked."""
    odd = [replace(e, infrared=e.visible) if e.band == "NIR" and e.visible else e for e in two_bands]
    loop = replace(LOOP, steps=120, batch_size=6, learning_rate=1e-2, warmup_steps=5)
    pictures = PictureFolder(
        train_teacher(odd, tmp_path, replace(CONFIG, loop=loop, members=(Member(width=16, dropout=0.0),)))
    )
    assert teacher_bands(tmp_path) == BANDS == ("LWIR", "NIR")
    for example in (e for e in odd if e.visible):
        thermal, near = (np.asarray(Image.open(pictures.path(example, band)), dtype=float) for band in BANDS)
        photo = np.asarray(Image.open(example.visible).convert("L"), dtype=float)
        seen_near, seen_thermal = (np.corrcoef(seen.ravel(), photo.ravel())[0, 1] for seen in (near, thermal))
        assert seen_near > 0.3 and seen_thermal < -0.3
        assert Teacher(tmp_path).picture(Image.open(example.visible).convert("RGB"), "NIR").size == near.shape[::-1]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_some_views_are_of_the_teachers_other_band(two_bands, drawn, tmp_path, share):
    view, vae = ViewConfig(resize=20, crop=16, variants=40, flip=False), make_vae().eval()
    for example in two_bands[:2]:
        other = next(band for band in BANDS if band != example.band)
        cache = LatentCache(tmp_path, vae, view, None, 0, Taught(drawn, 0.5, BANDS, share))
        bands = [cache.band_of_view(example, epoch) for epoch in range(80)]
        assert bands[:40] == bands[40:] and abs(bands.count(other) / 80 - share) < 0.2
        assert len(set(bands)) == (1 if share in (0, 1) else 2)
        # The target of such a view is the teacher's picture alone, whatever the share of its pictures is else.
        cache.fill([example])
        alone = LatentCache(tmp_path, vae, view, None, 0, Taught(drawn, 1.0, BANDS, 0.0))
        alone.fill([replace(example, band=other)])
        for epoch in (e for e in range(40) if bands[e] == other):
            assert torch.equal(
                cache.load(example, epoch)["infrared"], alone.load(replace(example, band=other), epoch)["infrared"]
            )
    assert LatentCache(tmp_path, vae, view, None).band_of_view(two_bands[1], 0) == "NIR"


def test_a_finished_teacher_is_not_trained_again_and_a_lost_picture_is_made_again(examples, taught, monkeypatch):
    trained, run = [], loop_module.Loop.run
    monkeypatch.setattr(loop_module.Loop, "run", lambda self: trained.append(self.name) or run(self))
    lost = taught.path(examples[0], "LWIR")
    before = lost.read_bytes()
    lost.unlink()
    train_teacher(examples, taught.folder.parent, replace(CONFIG, members=CONFIG.members * 2))
    assert not trained and lost.read_bytes() == before
    other = taught.path(examples[1], "LWIR")
    kept = other.stat().st_mtime_ns
    monkeypatch.setattr(teacher_module, "_ANSWERS", "drawn in another way")
    train_teacher(examples, taught.folder.parent, replace(CONFIG, members=CONFIG.members * 2))
    assert not trained and other.stat().st_mtime_ns > kept
    with pytest.raises(TrainingError, match="the configuration has no member1, .* has: choose another output folder"):
        train_teacher(examples, taught.folder.parent, CONFIG)

    # A member that is missing is trained, the others are kept; each has its own random numbers. The pictures are new.
    train_teacher(examples, taught.folder.parent, replace(CONFIG, members=CONFIG.members * 3))
    assert trained == ["teacher"] and lost.read_bytes() != before
    hashes = {file_hash(path) for path in taught.folder.parent.glob("member*/teacher.safetensors")}
    assert len(hashes) == 3


def test_it_learns(examples, tmp_path):
    """Infrared is the photo's inverse here: after some steps the error is far below that of the best constant."""
    loop = replace(LOOP, steps=60, batch_size=6, learning_rate=1e-2, warmup_steps=5, log_every=10)
    train_teacher(examples, tmp_path, replace(CONFIG, loop=loop, members=(Member(width=16, dropout=0.0),)))
    history = json.loads((tmp_path / "member0" / "history.json").read_text())["history"]
    levels = [np.asarray(Image.open(example.infrared), dtype=float) / 255 for example in examples if example.visible]
    assert history[-1]["loss"] < 0.3 * np.mean([level.var() for level in levels])


@pytest.mark.parametrize("size", [(64, 64), (70, 65), (65, 97), (33, 200)])
def test_decoder_and_picture_for_any_size(size):
    decoder = PictureDecoder(16, 0.2).eval()
    photo, _ = draw_scene(3, size)
    [picture] = predict([PictureNetwork(load_network(), decoder)], photo, 64)
    assert (picture.mode, picture.size) == ("L", size)
    maps = [
        torch.randn(2, channels, 16 // 2**level, 12 // 2**level) for level, channels in enumerate((24, 40, 112, 320))
    ]
    assert decoder(torch.randn(2, 3, 16, 12), maps, torch.randn(2, 1280)).shape == (2, 1, 16, 12)


def test_the_picture_of_a_mirror_image_is_the_mirror_image_of_the_picture():
    torch.manual_seed(0)
    members = [PictureNetwork(load_network(), PictureDecoder(16, 0.2)).eval() for _ in range(2)]
    assert load_network().state_dict().keys() - members[0].network.state_dict().keys() == {"_fc.weight", "_fc.bias"}
    photo, _ = draw_scene(5, (96, 64))
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    [one], [other] = predict(members, photo, 64), predict(members, photo.transpose(mirror), 64)
    difference = np.abs(np.asarray(one, dtype=int) - np.asarray(other.transpose(mirror), dtype=int))
    assert difference.max() <= 1 and np.asarray(one).std() > 0


def test_share_of_the_teacher_in_the_target(examples, drawn, tmp_path):
    view, vae = ViewConfig(resize=72, crop=64, variants=1), make_vae().eval()
    example = examples[0]

    def infrared(*teacher):
        cache = LatentCache(tmp_path, vae, view, None, 0, *teacher)
        cache.fill([example])
        return cache.load(example, 0)

    plain, whole, half = infrared(), infrared(Taught(drawn, 1.0)), infrared(Taught(drawn, 0.5))
    assert torch.equal(plain["visible"], whole["visible"])
    assert not torch.equal(plain["infrared"], half["infrared"])
    stride = latent_stride(vae)
    views, side = Views(view, 0, stride), 64 // stride
    roles = {"infrared": example.infrared, "teacher": drawn.path(example, "LWIR")}
    cut = views.cut(roles, example, 0)
    place = views.place(example, 0, tuple(length // stride - side for length in cut["teacher"].size[::-1]))
    for stored, picture in (
        (whole, cut["teacher"]), (half, Image.blend(cut["infrared"], cut["teacher"], 0.5))
    ):  # fmt: skip
        latent = encode_mode(vae, to_tensor(picture)[None])[0, :, place[0] :, place[1] :][:, :side, :side]
        torch.testing.assert_close(stored["infrared"], latent, atol=2e-3, rtol=1e-2)


def test_the_teachers_picture_is_not_filtered_again(examples, drawn, tmp_path):
    """It has the photo's edges; only the camera's picture gets them."""
    vae, infrared = make_vae().eval(), []
    for radius in (0, 3):
        view = ViewConfig(resize=72, crop=64, variants=1, edge_radius=radius)
        cache = LatentCache(tmp_path, vae, view, None, 0, Taught(drawn, 1.0))
        cache.fill(examples[:1])
        infrared.append(cache.load(examples[0], 0)["infrared"])
    assert torch.equal(*infrared)


def test_a_finished_teacher_can_be_asked_about_any_photo(taught, tmp_path):
    photo, _ = draw_scene(7, (80, 64))
    folder = taught.folder.parent
    teacher = Teacher(folder)
    picture = teacher.picture(photo, "LWIR")
    assert (picture.mode, picture.size) == ("L", photo.size)
    assert (
        picture.tobytes() == Teacher(folder).picture(photo, "LWIR").tobytes() and teacher.hash == Teacher(folder).hash
    )
    with pytest.raises(TrainingError, match="holds no finished teacher: python -m train.teacher"):
        Teacher(tmp_path)


def make_views(seed, size=(40, 32)):
    photo, infrared = draw_scene(seed, size)
    plan = Image.new("RGB", size, (seed, 0, 0))
    plan.paste((0, seed, 0), (0, 0, size[0] // 2, size[1]))
    return {"visible": photo, "infrared": infrared.convert("RGB"), "segmentation": plan}


def negative(photo, band):
    if band == "NIR":
        return photo.convert("L")
    return Image.eval(photo.convert("L"), lambda level: 255 - level)


@pytest.mark.parametrize("seed", range(12))
def test_a_mixed_view_is_made_of_both_and_its_target_is_the_teachers(examples, seed):
    mixer = Mixer(negative, "negative", 1.0, examples[:2])
    views, others = make_views(11), make_views(12, (64, 32))
    kept = {role: view.tobytes() for role, view in views.items()}
    mixed = mixer.mix(views, others, "LWIR", torch.Generator().manual_seed(seed))
    again = mixer.mix(views, others, "LWIR", torch.Generator().manual_seed(seed))
    assert all(view.size == (40, 32) and view.tobytes() == again[role].tobytes() for role, view in mixed.items())
    assert {role: view.tobytes() for role, view in views.items()} == kept
    assert mixed["infrared"].convert("L").tobytes() == negative(mixed["visible"], "LWIR").tobytes()
    near = mixer.mix(views, others, "NIR", torch.Generator().manual_seed(seed))
    assert near["visible"].tobytes() == mixed["visible"].tobytes()
    assert near["infrared"].convert("L").tobytes() == near["visible"].convert("L").tobytes()
    assert mixed["visible"].tobytes() != kept["visible"]
    colours = {colour for _, colour in mixed["segmentation"].getcolors()}
    assert colours <= {(11, 0, 0), (0, 11, 0), (12, 0, 0), (0, 12, 0)}


def test_both_ways_of_mixing_occur(examples):
    mixer, pasted = Mixer(negative, "negative", 1.0, examples[:2]), 0
    views, others = make_views(11), make_views(12)
    for seed in range(60):
        mixed = mixer.mix(views, others, "LWIR", torch.Generator().manual_seed(seed))["visible"]
        difference = np.abs(np.asarray(mixed, dtype=int) - np.asarray(views["visible"], dtype=int)).sum(-1)
        same = np.abs(np.asarray(mixed, dtype=int) - np.asarray(others["visible"], dtype=int)).sum(-1)
        pasted += bool(((difference == 0) | (same == 0)).all())
    assert 15 < pasted < 45


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)])
def test_share_of_mixed_views(examples, share, least, most):
    pairs = [example for example in examples if example.visible]
    mixer = Mixer(negative, "negative", share, pairs)
    partners = [mixer.partner(torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert least <= sum(partner is not None for partner in partners) <= most
    if share == 1:
        assert {partner.id for partner in partners} == {example.id for example in pairs}


def test_partners_are_drawn_by_their_weights(examples):
    pairs = [example for example in examples if example.visible]
    weights = [3.0, 1.0] + [0.0] * (len(pairs) - 2)
    mixer = Mixer(negative, "negative", 1.0, pairs, weights)
    partners = [mixer.partner(torch.Generator().manual_seed(seed)).id for seed in range(400)]
    assert set(partners) == {pairs[0].id, pairs[1].id}
    assert 270 < partners.count(pairs[0].id) < 330
    assert mixer.key != Mixer(negative, "negative", 1.0, pairs).key


def test_latents_of_mixed_views_are_others_and_are_kept(examples, tmp_path):
    view, vae, pairs = ViewConfig(resize=72, crop=64, variants=1), make_vae().eval(), examples[:3]

    def latents(mixer):
        cache = LatentCache(tmp_path, vae, view, None, 0, None, mixer)
        cache.fill(pairs)
        return [cache.load(pair, 0)["visible"] for pair in pairs], len(list(tmp_path.rglob("*.safetensors")))

    plain, count = latents(None)
    mixed, more = latents(Mixer(negative, "negative", 1.0, pairs))
    assert count == 3 and more == 6 and not any(map(torch.equal, plain, mixed))
    assert latents(Mixer(negative, "negative", 1.0, pairs))[1] == 6
    assert latents(Mixer(negative, "another teacher", 1.0, pairs))[1] == 9
    assert latents(Mixer(negative, "negative", 1.0, pairs[:2]))[1] == 12


def test_the_prompt_says_the_band_of_the_target(two_bands, bundle_folder, tmp_path, monkeypatch):
    """Both bands are asked for, each with the teacher's picture of it, and a style knows the band of its cameras."""
    asked = []
    encode = PromptEncoder.__call__
    monkeypatch.setattr(PromptEncoder, "__call__", lambda self, prompts: asked.extend(prompts) or encode(self, prompts))
    train_teacher(two_bands, tmp_path / "teacher", CONFIG)
    loop = LoopConfig(steps=6, batch_size=4, learning_rate=1e-3, warmup_steps=1, ema_decay=0.5)
    view = ViewConfig(resize=36, crop=32, variants=2)
    config = PhaseConfig("2", loop, view=view, map_style="union", teacher_share=1.0, other_band=0.5, dropout=0.0)
    start = make_start_folder(bundle_folder, tmp_path / "start")
    options = {"cache": tmp_path / "cache", "vlum": bundle_folder, "teacher": tmp_path / "teacher"}
    general = train_phase(config, two_bands, start, tmp_path / "two", **options)
    assert {prompt.rsplit(" into ")[1] for prompt in asked} == {"infrared", "near infrared"}
    assert json.loads((general / "model_index.json").read_text())["bands"] == {}
    asked.clear()
    style = replace(config, phase="3", style="near", sources=("odd",), lora=LoraSettings(2, 2), other_band=0.0)
    near = train_phase(style, two_bands, general, tmp_path / "three", **options)
    assert {prompt.rsplit(" into ")[1] for prompt in asked} == {"near infrared"}
    assert json.loads((near / "model_index.json").read_text())["bands"] == {"near": "NIR"}
    packed = pack_bundle(general, {"near": near}, tmp_path / "bundle", "both", {})
    pipe = DiffV2IRPipeline.from_pretrained(packed)
    assert [pipe.band(pipe.default_settings.replace(style=style)) for style in pipe.styles] == ["LWIR", "NIR"]


def test_phase_2_with_a_teacher(examples, taught, bundle_folder, tmp_path):
    loop = LoopConfig(steps=1, batch_size=2, learning_rate=1e-3, warmup_steps=1, ema_decay=0.5)
    view = ViewConfig(resize=36, crop=32, variants=2)
    config = PhaseConfig("2", loop, view=view, map_style="union", teacher_share=1.0, teacher_mix=0.5)
    start = make_start_folder(bundle_folder, tmp_path / "start")
    options = {"cache": tmp_path / "cache", "vlum": bundle_folder, "teacher": taught.folder.parent}
    result = train_phase(config, examples, start, tmp_path / "run", **options)
    assert (result / "model_index.json").is_file()


def test_bad_shares_and_missing_pictures_are_named(examples, bundle_folder, tmp_path):
    config = PhaseConfig("2", LOOP, view=CONFIG.view, teacher_share=0.5)
    with pytest.raises(ValueError, match=r"teacher_share must lie in \[0, 1\], got 1.5"):
        replace(config, teacher_share=1.5)
    with pytest.raises(ValueError, match="teacher_share is for phases 2 and 3"):
        replace(config, phase="base")
    with pytest.raises(ValueError, match=r"teacher_mix must lie in \[0, 1\], got -0.1"):
        replace(config, teacher_mix=-0.1)
    with pytest.raises(ValueError, match="teacher_mix is for phases 2 and 3"):
        PhaseConfig("base", LOOP, teacher_mix=0.5)
    with pytest.raises(ValueError, match=r"cut_mix must lie in \[0, 1\], got 1.1"):
        replace(config, cut_mix=1.1)
    with pytest.raises(ValueError, match="cut_mix is for phases 2 and 3"):
        PhaseConfig("1", LOOP, lora=LoraSettings(), cut_mix=0.5)
    with pytest.raises(ValueError, match="cut_mix is for views that are kept"):
        replace(config, teacher_share=1.0, fresh_views=True, cut_mix=0.5)

    def train(teacher):
        train_phase(config, examples, bundle_folder, tmp_path / "run", cache=tmp_path / "cache", teacher=teacher)

    with pytest.raises(ValueError, match="output of python -m train.teacher: none was given"):
        train(None)
    with pytest.raises(ValueError, match="nowhere has no pictures/"):
        train(tmp_path / "nowhere")
    (tmp_path / "empty" / "pictures").mkdir(parents=True)
    with pytest.raises(TrainingError, match="empty holds no finished teacher"):
        train(tmp_path / "empty")
    train_teacher(examples, tmp_path / "thermal", CONFIG)
    shutil.rmtree(tmp_path / "thermal" / "pictures")
    (tmp_path / "thermal" / "pictures").mkdir()
    with pytest.raises(DataError, match=r"7 of 7 photos have no picture in .*thermal"):
        train(tmp_path / "thermal")
    with pytest.raises(DataError, match="thermal has seen no pairs of NIR"):
        check_teacher(config, tmp_path / "thermal", [replace(examples[0], band="NIR")])
    with pytest.raises(ValueError, match="other_band needs teacher_share"):
        replace(config, teacher_share=0.0, other_band=0.2)
    with pytest.raises(ValueError, match="other_band needs prompts that say the band"):
        replace(config, other_band=0.2, fixed_prompt="")
    with pytest.raises(ValueError, match=r"other_band must lie in \[0, 1\], got 2"):
        replace(config, other_band=2)


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
