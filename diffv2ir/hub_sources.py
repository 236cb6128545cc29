"""Which models of the Hugging Face hub this program knows by a name."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
"""A repository on the hub as people write it, OWNER/NAME[@REVISION]."""


@dataclass(frozen=True)
class Source:
    """A repository on the hub, or the part of it that is wanted.

    Attributes:
        what: in a few words.
        revision: a commit, or a branch, whose newest state is taken.
        file: the one file that is wanted.
        patterns: without `file`, names of the wanted files, with `*`; none = all.
        repo_type: "model" or "dataset".
        sha256: of `file`, where it is known from elsewhere than the hub.
    """

    repo_id: str
    what: str
    revision: str = "main"
    file: str | None = None
    patterns: tuple[str, ...] = ()
    repo_type: str = "model"
    sha256: str | None = None

    @property
    def page(self) -> str:
        """The repository's page on the hub."""
        return f"https://huggingface.co/{'datasets/' if self.repo_type == 'dataset' else ''}{self.repo_id}"


def _released(file: str, what: str) -> Source:
    # Their authors put the checkpoints into the repository of their dataset. It names no version: its newest state.
    return Source("Lidong26/IR-500K", what, file=f"IR-500k/finetuned_checkpoints/{file}", repo_type="dataset")


SOURCES = {
    "sd15": Source(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Stable Diffusion 1.5, where phase 1 starts",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        patterns=(
            "model_index.json",
            "scheduler/*",
            "tokenizer/*",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ),
    ),
    "blip": Source(
        "Salesforce/blip-image-captioning-base",
        "BLIP, base size, for captions",
        "82a37760796d32b1411fe092ab5d4e227313294b",
        patterns=("*.json", "vocab.txt", "pytorch_model.bin"),
    ),
    "sam": Source(
        "ybelkada/segment-anything",
        "SAM ViT-B, the official file, for segmentation maps",
        file="checkpoints/sam_vit_b_01ec64.pth",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "stage2": _released("after_phase_2.ckpt", "the paper's checkpoint after phase 2"),
    "m3fd": _released("M3FD.ckpt", "the paper's checkpoint of M3FD, after phase 3"),
    "flir": _released("FLIR.ckpt", "the paper's checkpoint of FLIR, after phase 3"),
}

RELEASED = ("stage2", "m3fd", "flir")
"""Single files that bundles are made of."""


def named(name: str) -> Source | None:
    """One of `SOURCES`, in another commit, branch or tag by "NAME@REVISION"; None if it is none of them."""
    alias, at, revision = name.partition("@")
    source = SOURCES.get(alias)
    if source is None or not at:
        return source
    return replace(source, revision=revision) if revision else None


def is_released(name: str) -> bool:
    """Whether this names a checkpoint of the paper, in whichever commit, branch or tag."""
    return name.partition("@")[0] in RELEASED and named(name) is not None
