"""YAML settings: what is wrong is named; every file in train/configs can be loaded."""

import dataclasses
from pathlib import Path

import pytest

from diffv2ir.training.autoencoder import AutoencoderConfig
from diffv2ir.training.captioner import CaptionerConfig
from diffv2ir.training.config import load_config
from diffv2ir.training.dry_run import latent_size
from diffv2ir.training.loop import LoopConfig
from diffv2ir.training.phases import LoraSettings, PhaseConfig
from diffv2ir.training.segmenter import SegmenterConfig
from diffv2ir.training.teacher import TeacherConfig
from diffv2ir.training.text import TextConfig
from diffv2ir.training.tiny import STYLES

CONFIGS = Path(__file__).parent.parent / "train" / "configs"
COMPONENTS = {
    "autoencoder": AutoencoderConfig,
    "captioner": CaptionerConfig,
    "segmenter": SegmenterConfig,
    "teacher": TeacherConfig,
    "text": TextConfig,
}


@pytest.fixture
def load(tmp_path):
    def load(text, kind=PhaseConfig):
        (tmp_path / "config.yaml").write_text(text)
        return load_config(tmp_path / "config.yaml", kind)

    return load


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_configurations_of_the_project_load(path):
    config = load_config(path, COMPONENTS.get(path.stem, PhaseConfig))
    assert config.loop.steps > 0
    if isinstance(config, PhaseConfig):
        name = path.stem.removeprefix("phase")
        name = name.split("-")[0] if path.stem.startswith("phase2") else name
        assert name == (f"3-{config.style}" if path.parent.name == "tiny" and config.style else config.phase)


def test_tiny_has_a_configuration_for_every_stage():
    wanted = {
        *COMPONENTS,
        "base",
        "phase1",
        "phase2",
        "phase2-picture",
        *(f"phase3-{style}" for style in STYLES),
    }
    assert {path.stem for path in (CONFIGS / "tiny").glob("*.yaml")} == wanted


@pytest.mark.parametrize("phase", ["1", "2", "3"])
def test_full_size_is_the_papers_batch_on_every_card(phase):
    paper, *cards = (
        load_config(CONFIGS / "sd15" / card / f"phase{phase}.yaml", PhaseConfig) for card in ("", "24gb", "12gb")
    )
    assert paper.view.variants == 2 and paper.view.flip == "in_turn"  # each example is seen both ways
    latents = 500_000 * 2 * (1 if phase == "1" else 3) * latent_size(paper.view, 4, 8)
    for card in ("", "24gb", "12gb"):
        text = (CONFIGS / "sd15" / card / f"phase{phase}.yaml").read_text()
        assert f"take at most {latents / 1e9:.0f} GB of disk" in text
    assert (paper.loop.learning_rate, paper.view.crop, paper.loop.share(1)) == (1e-4, 256, (256, 32))
    saving = ("micro_batch_size", "optimizer", "ema_device", "validate_every")
    for config in cards:
        assert config.gradient_checkpointing and config.frozen_dtype == "bf16" and config.loop.mixed_precision == "fp16"
        assert config.loop.optimizer == ("adamw" if config.lora else "adamw8bit")
        assert config.loop.share(1)[1] < 32
        loop = dataclasses.replace(config.loop, **{name: getattr(paper.loop, name) for name in saving})
        assert dataclasses.replace(config, loop=loop, gradient_checkpointing=False, frozen_dtype="fp32") == paper


@pytest.mark.parametrize("regions", ["[60, 28]", "[12, 28, 60]", "[60, 28, 0]"])
def test_regions_that_sam_cannot_learn_are_refused(load, regions):
    with pytest.raises(ValueError, match="regions must be three numbers that fall"):
        load(f"{{loop: {{steps: 1}}, regions: {regions}}}", SegmenterConfig)


def test_values_become_the_types_of_the_fields(load):
    config = load(
        """
        phase: "1"
        loop: {steps: 5, learning_rate: 1e-4, weight_decay: 0, micro_batch_size: null}
        lora: {targets: [to_q, conv1]}
        source_weights: {m3svd: 0.5}
        kinds: [infrared]
        """
    )
    assert config.loop == LoopConfig(steps=5, learning_rate=1e-4, weight_decay=0.0)
    assert isinstance(config.loop.learning_rate, float) and isinstance(config.loop.weight_decay, float)
    assert config.lora == LoraSettings(targets=("to_q", "conv1"))
    assert (config.source_weights, config.kinds) == ({"m3svd": 0.5}, ("infrared",))


@pytest.mark.parametrize(
    "text, message",
    [
        (
            'phase: "2"\nloop: {steps: 1}\nlearning_rate: 1',
            r"config.yaml: unknown setting.*'learning_rate'.*PhaseConfig",
        ),
        ('phase: "2"\nloop: {steps: 1, rate: 1}', r"config.yaml: loop: unknown setting.*'rate'.*LoopConfig"),
        ('phase: "2"', r"config.yaml: .*'loop'"),
        ('phase: "2"\nloop: {batch_size: 2}', r"config.yaml: .*'steps'"),
        ('phase: "2"\nloop: null', r"config.yaml: loop: expected LoopConfig, got None"),
        ('phase: "2"\nloop: {steps: many}', r"config.yaml: loop: steps: expected int, got 'many'"),
        ('phase: "2"\nloop: {steps: 2.5}', r"loop: steps: expected int, got 2.5"),
        ('phase: "2"\nloop: {steps: true}', r"loop: steps: expected int, got True"),
        ('phase: "2"\nloop: {steps: 1, learning_rate: fast}', r"loop: learning_rate: .*'fast'"),
        ('phase: "2"\nloop: {steps: 0}', r"loop: steps must be at least 1, got 0"),
        ('phase: "2"\nloop: {steps: 1}\nkinds: pairs', r"kinds: expected a list or NoneType, got 'pairs'"),
        ("phase: 2\nloop: {steps: 1}", r"phase: expected str, got 2"),
        ("- phase", r"config.yaml: expected a mapping of settings, got list"),
        ("", r"config.yaml: expected a mapping of settings, got NoneType"),
        ("phase: [", r"config.yaml is not YAML"),
    ],
)
def test_wrong_settings_are_named(load, text, message):
    with pytest.raises(ValueError, match=message):
        load(text)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.yaml"):
        load_config(tmp_path / "nothing.yaml", PhaseConfig)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"phase": "4"}, "phase must be one of .*'base', '1', '2', '3'.*got '4'"),
        ({"phase": "3"}, "phase 3, and only phase 3, needs a style name"),
        ({"style": "flir"}, "phase 3, and only phase 3, needs a style name"),
        ({"phase": "1"}, "phase 1 trains a LoRA: set lora"),
        ({"lora": LoraSettings()}, "phase 2 trains all weights: remove lora"),
        ({"phase": "base", "lora": LoraSettings()}, "phase base trains all weights: remove lora"),
        ({"map_style": "edges"}, "map_style must be one of .*got 'edges'"),
        ({"frozen_dtype": "int8"}, "frozen_dtype must be one of fp32, fp16, bf16, got 'int8'"),
        ({"phase": "3", "style": "two words"}, "style must be a name"),
        ({"phase": "3", "style": "general"}, "style 'general' is the name of the weights without a style"),
        ({"dropout": 0.15}, "dropout and extra_dropout must be shares of one whole"),
        ({"extra_dropout": {"S": 0.5, "T": 0.5}}, "dropout and extra_dropout must be shares of one whole"),
        ({"extra_dropout": {"S": -0.1}}, "dropout and extra_dropout must be shares of one whole"),
        ({"extra_dropout": {"TS": 0.1}}, "extra_dropout is for the subsets V, S, T, VS, VT, ST, VST, got TS"),
        ({"phase": "base", "extra_dropout": {"S": 0.1}}, "extra_dropout is for phases 2 and 3"),
        ({"defaults": {"steps": 0}}, "steps must be a whole number"),
        ({"defaults": {"step": 5}}, "unknown settings: step"),
    ],
)
def test_impossible_combinations_are_refused(changes, message):
    valid = PhaseConfig(phase="2", loop=LoopConfig(steps=1))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(valid, **changes)
