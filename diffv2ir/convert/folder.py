"""UNet, VAE and text encoder of a diffusers folder: their configs, and which weight of which file goes where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from diffv2ir.convert.checkpoint import ConvertError, open_checkpoint
from diffv2ir.convert.official import Component, KeyProblems, checked

# By component, the files that hold its weights; the first that is there is taken, whole or in shards with an index.
WEIGHTS = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}


def open_component(folder: Path, name: str) -> dict[str, Tensor]:
    """The weights of one component by "COMPONENT.KEY", memory-mapped as those of `open_checkpoint`.

    Raises:
        ConvertError: there are none, or a file cannot be read.
    """
    for file in WEIGHTS[name]:
        whole, index = folder / name / file, folder / name / f"{file}.index.json"
        if whole.is_file():
            paths = [whole]
        elif index.is_file():
            paths = [folder / name / shard for shard in sorted(set(read_json(index).get("weight_map", {}).values()))]
        else:
            continue
        return {f"{name}.{key}": weight for path in paths for key, weight in open_checkpoint(path).items()}
    raise ConvertError(f"{folder / name} has no weights: expected {' or '.join(WEIGHTS[name])}")


def read_folder(folder: Path) -> list[Component]:
    """UNet, VAE and text encoder, by their configs and the shapes of their weights; the keys are "COMPONENT.KEY".

    Raises:
        ConvertError: a config that does not make such a model, or keys missing, unexpected or of another shape.
    """
    problems, components = KeyProblems(), []
    for name in WEIGHTS:
        shapes = {key: tuple(weight.shape) for key, weight in open_component(folder, name).items()}
        model = _build(folder / name, name)
        component = checked(Component(name, model, _names(model, shapes, name)), shapes, problems)
        used = set(component.keys.values())
        # A constant that transformers of old saved with the weights.
        problems.unexpected += [key for key in shapes if key not in used and not key.endswith("position_ids")]
        components.append(component)
    problems.raise_any(str(folder))
    return components


def _build(folder: Path, name: str) -> nn.Module:
    """A component without weights, on the meta device."""
    read_json(folder / "config.json")  # says what is wrong with it in one sentence
    try:
        with torch.device("meta"):
            if name == "text_encoder":
                return CLIPTextModel(CLIPTextConfig.from_pretrained(folder, local_files_only=True))
            model_class = UNet2DConditionModel if name == "unet" else AutoencoderKL
            return model_class.from_config(model_class.load_config(folder, local_files_only=True))
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConvertError(f"{folder / 'config.json'} does not describe a {name}: {error}") from error


def _names(model: nn.Module, shapes: dict[str, tuple[int, ...]], name: str) -> dict[str, str]:
    """Key by the name in the model: files of old call the attention of the VAE and the text model otherwise."""
    names = {key.removeprefix(f"{name}."): key for key in shapes}
    if isinstance(model, CLIPTextModel):
        own = model.state_dict().keys()
        return {inner if inner in own else inner.removeprefix("text_model."): key for inner, key in names.items()}
    model._fix_state_dict_keys_on_load(names)
    return names


def read_json(path: Path) -> dict[str, Any]:
    """Raises: ConvertError if it is not there, or not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path} cannot be read ({error}): expected a diffusers folder") from error
    if not isinstance(content, dict):
        raise ConvertError(f"{path}: expected a JSON object")
    return content
