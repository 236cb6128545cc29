"""The whole chain of the tiny bundle, every stage for a step or two."""

import json
import re

import pytest
import yaml
from make_data import make_manifest_dataset

from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.training import loop as loop_module
from diffv2ir.training import tiny

LOOP = {"steps": 1, "batch_size": 2, "warmup_steps": 1, "ema_decay": 0.5, "learning_rate": 1e-3}
PHASE = {"loop": LOOP, "view": {"resize": 18, "crop": 16, "variants": 1}}
SAM = dict(
    image_size=32, patch_size=16, embed_dim=8, depth=1, num_heads=2, window_size=2, global_attn_indexes=[0],
    prompt_dim=8, mask_in_chans=4, decoder_depth=1, decoder_heads=2, decoder_mlp_dim=8, points_per_side=1,
)  # fmt: skip
LORA = {"rank": 2, "alpha": 2, "targets": ["to_q", "conv1"]}
CONFIGS = {
    "segmenter": {"loop": LOOP, "model": SAM, "regions": [8, 4, 2], "points_per_image": 2},
    "text": {
        "loop": LOOP, "vocabulary": 600, "hidden_size": 16, "layers": 1, "heads": 2,
        "vision_size": 16, "vision_patch": 8,
    },
    "captioner": {
        "loop": LOOP, "hidden_size": 16, "vision_layers": 1, "text_layers": 1, "heads": 2, "image_size": 32, "folds": 2,
    },
    "autoencoder": {
        "loop": LOOP, "encoder_width": 8, "width": 8, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1], "crop": 16,
        "statistics_images": 1,
    },
    "teacher": {"loop": LOOP, "view": {"resize": 36, "crop": 32, "variants": 1}, "members": [{"width": 16}]},
    "base": {
        "phase": "base", "unet": {"block_out_channels": [16, 32], "heads": 2, "norm_num_groups": 8, "sample_size": 8},
        **PHASE,
    },
    "phase1": {"phase": "1", "lora": LORA, **PHASE},
    "phase2": {
        "phase": "2", "map_style": "union", "own_captions": True,
        "fresh": {"mix": 0.5, "uses": 2}, **PHASE, "loop": {**PHASE["loop"], "mixed_precision": "bf16"},
    },
    "phase2-picture": {
        "phase": "2", "map_style": "union", "own_captions": True, "fresh": {"real": 0.5}, "start_share": 0.5,
        "picture": {"edge_radius": 10}, "noise": {"last_step_share": 1}, **PHASE,
    },
    **{
        f"phase3-{style}": {
            "phase": "3", "style": style, "lora": LORA, "map_style": "union",
            "sources": ["elsewhere" if style == "nir" else "odd"], **PHASE,
        }
        for style in tiny.STYLES
    },
}  # fmt: skip


STYLES = [style for style in tiny.STYLES if style != "nir"]  # of this one there is no camera here


class Killed(BaseException):
    pass


def test_the_chain_ends_in_a_bundle_and_goes_on_where_it_stopped(tmp_path, photo, caplog, monkeypatch):
    caplog.set_level("INFO", logger="diffv2ir")
    data = make_manifest_dataset(tmp_path / "data", pairs=6, infrared=2)
    (tmp_path / "configs").mkdir()
    for name, config in CONFIGS.items():
        (tmp_path / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(config))
    arguments = (data, tmp_path / "run", tmp_path / "configs")

    train_phase = tiny.train_phase

    def dies_in_phase_2(config, *args, **options):
        if config.phase == "2":
            raise Killed
        return train_phase(config, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(tiny, "train_phase", dies_in_phase_2)
        tiny.train_tiny(*arguments)

    trained = []
    run = loop_module.Loop.run
    monkeypatch.setattr(loop_module.Loop, "run", lambda self: trained.append(self.name) or run(self))
    bundle = tiny.train_tiny(*arguments)
    assert trained == ["phase 2", "phase 2", *(f"phase 3 ({style})" for style in STYLES)]
    assert "no style nir: there is no example of sources ('elsewhere',)" in caplog.text
    stages = [record.message for record in caplog.records if record.message.startswith("stage ")]
    assert re.fullmatch(r"stage 1 of 13: segmenter \(about \d+ min; about \d+ min left in all\)", stages[0])
    assert stages[-1].startswith("stage 13 of 13: packing") and "min left in all" in stages[-1]

    trained.clear()
    assert tiny.train_tiny(*arguments) == bundle and not trained

    pipe = DiffV2IRPipeline.from_pretrained(bundle)
    # On one machine, with as many threads, a stranger gets these weights to the bit.
    again = tiny.train_tiny(data, tmp_path / "again", tmp_path / "configs")
    assert DiffV2IRPipeline.from_pretrained(again).bundle_sha256 == pipe.bundle_sha256
    assert (pipe.styles, pipe.config.name, pipe.config.map_style) == (["general", *STYLES], "tiny", "union")
    assert pipe.default_settings == pipe.default_settings.replace(**tiny.DEFAULTS)
    assert pipe.config.phrases == list(tiny.PHRASES)
    settings = pipe.default_settings.replace(steps=1, resolution=64, seed=0, style=STYLES[0])
    output = pipe(photo, settings)
    assert output.image.size == photo.size and output.caption
    assert not [path for path in bundle.rglob("*.json") if str(tmp_path) in path.read_text()]
    assert json.loads((bundle / "scheduler" / "scheduler_config.json").read_text())["rescale_betas_zero_snr"] is True
