"""Configurations of models whose weights are not here: a dry run counts them, benchmarks fill them with numbers."""

from __future__ import annotations

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {
        "unet": dict(sample_size=64, in_channels=12, out_channels=4, cross_attention_dim=768, attention_head_dim=8),
        "vae": dict(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
            scaling_factor=0.18215,
        ),
        "text_encoder": dict(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
        ),
        "captioner": dict(
            text_config=dict(vocab_size=30524, hidden_size=768, encoder_hidden_size=768, num_attention_heads=12),
            vision_config=dict(hidden_size=768, image_size=384, patch_size=16),
        ),
        "segmenter": {},
    }
}
"""By name. "sd15": Stable Diffusion 1.5 widened to 12 channels, BLIP base, SAM ViT-B."""
