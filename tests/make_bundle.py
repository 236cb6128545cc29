"""A complete bundle of the real classes at the smallest configurations."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.vlum import SamSegmenter

V_PREDICTION = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
EPSILON = dict(prediction_type="epsilon", timestep_spacing="leading", steps_offset=1)
SCHEDULE = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
)


def make_unet(in_channels: int = 12, seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def add_adapter(
    unet: UNet2DConditionModel, name: str = "style", targets: Sequence[str] = ("to_q", "conv1"), seed: int = 5
) -> UNet2DConditionModel:
    """Give `unet` a low-rank adapter that changes what it computes."""
    unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=list(targets)), name)
    with torch.no_grad():
        for key, parameter in unet.named_parameters():
            if "lora_B" in key:
                parameter.normal_(generator=torch.Generator().manual_seed(seed))
    return unet


def make_vae() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.5,
    ).eval()


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A real CLIP tokenizer that knows single letters and a few merges."""
    letters = [chr(code) for code in range(33, 127)]
    merges = ["i n", "r e", "a n", "in f", "o f</w>"]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(2)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=2,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def make_captioner(folder: Path) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "street", "car", "tree", "sky", "with", "and"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizer.from_pretrained(folder)
    special = dict(bos_token_id=2, eos_token_id=3, sep_token_id=3, pad_token_id=0)
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(3)
    config = BlipConfig(
        text_config=dict(
            vocab_size=len(words), encoder_hidden_size=16, projection_dim=16, max_position_embeddings=32,
            **small, **special,
        ),
        vision_config=dict(image_size=32, patch_size=16, projection_dim=16, **small),
        projection_dim=16,
    )  # fmt: skip
    model = BlipForConditionalGeneration(config).eval()
    model.generation_config.update(max_new_tokens=5, **{k: v for k, v in special.items() if k != "sep_token_id"})
    processor = BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    return model, processor


def make_segmenter() -> SamSegmenter:
    torch.manual_seed(4)
    return SamSegmenter(
        image_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2, global_attn_indexes=(0,), window_size=2,
        prompt_dim=16, mask_in_chans=4, decoder_depth=1, decoder_heads=2, decoder_mlp_dim=16,
        points_per_side=2, points_per_batch=4, pred_iou_thresh=-100.0, stability_score_thresh=-100.0,
    ).eval()  # fmt: skip


def make_bundle(folder: Path, parts: Path) -> Path:
    """A saved bundle with the style "night"; `parts` gets what it is made of."""
    unet = make_unet()
    tokenizer = make_tokenizer(parts / "tokenizer")
    captioner, processor = make_captioner(parts / "captioner")
    pipe = DiffV2IRPipeline(
        unet=unet,
        vae=make_vae(),
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        scheduler=DDPMScheduler(**SCHEDULE, **V_PREDICTION),
        captioner=captioner,
        captioner_processor=processor,
        segmenter=make_segmenter(),
        defaults={"steps": 4, "resolution": 64, "sampler": "dpmpp_2m", "text_scale": 3.0},
        map_style="regions",
        styles=["night"],
        name="mini",
    )
    add_adapter(make_unet(), "night").save_lora_adapter(folder / "styles" / "night", "night")
    pipe.save_pretrained(folder)
    return folder


def grow(folder: Path) -> Path:
    """Give a bundle base and phase 1."""
    base = make_unet(in_channels=4, seed=8)
    base.save_pretrained(folder / "phases" / "base")
    add_adapter(base, "infrared", seed=6).save_lora_adapter(folder / "phases" / "infrared", "infrared")
    return folder
