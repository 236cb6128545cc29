"""Which weight of a checkpoint goes where: diffusers does the renaming, every key is accounted for here.

An official checkpoint (CompVis, InstructPix2Pix, DiffV2IR) holds the UNet, often a running average of it (EMA, under
names without dots), the autoencoder and CLIP's text model, and constants of its training.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from diffv2ir.convert import layout
from diffv2ir.convert.checkpoint import ConvertError
from diffv2ir.convert.layout import Shapes

UNET, EMA, VAE, TEXT = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model.transformer."

# Known and not needed: the noise schedule, counters of the EMA, constants; and the VAE's training loss.
BOOKKEEPING = frozenset(
    """betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
    log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
    posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 lvlb_weights logvar
    model_ema.decay model_ema.num_updates
    cond_stage_model.transformer.text_model.embeddings.position_ids""".split()
)
VAE_LOSS = VAE + "loss."

_MOST_LISTED = 20


class KeysError(ConvertError):
    """Keys of a checkpoint without their place. `keys`: all of them, by what is wrong; the message may name fewer."""

    def __init__(self, message: str, keys: dict[str, list[str]]):
        super().__init__(message)
        self.keys = keys

    @property
    def is_cut(self) -> bool:
        """Whether the message leaves some out."""
        return any(len(keys) > _MOST_LISTED for keys in self.keys.values())


class _Key(str):
    """A key in place of its weight, which diffusers' functions move about and ask for nothing but its dimensions."""

    shape = ()
    ndim = 0


@dataclass(frozen=True)
class Component:
    """One model of a checkpoint.

    Attributes:
        name: "unet", "vae" or "text_encoder".
        model: the diffusers or transformers model, on the meta device.
        keys: the key in the checkpoint by the name in the model; has all names of the model's state.
    """

    name: str
    model: nn.Module
    keys: dict[str, str]


@dataclass
class KeyProblems:
    """What does not fit, by keys of the checkpoint (`missing`: by the model's names where the official is unknown)."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def raise_any(self, source: str) -> None:
        """Raises: KeysError, listing them."""
        found = {kind: sorted(set(keys)) for kind, keys in vars(self).items() if keys}
        if found:
            lists = [f"- {len(keys)} {kind}: {_listed(keys)}" for kind, keys in found.items()]
            raise KeysError(f"{source} does not fit the layout of Stable Diffusion 1.x:\n" + "\n".join(lists), found)


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _MOST_LISTED} more" if len(keys) > _MOST_LISTED else ""
    return ", ".join(keys[:_MOST_LISTED]) + more


def read_components(shapes: Shapes, source: str, ema: bool = True) -> list[Component]:
    """UNet, VAE and text encoder of an official checkpoint, by the shapes of all of its weights.

    Args:
        source: the checkpoint's name in messages.
        ema: take the running average of the UNet's weights where there is one, else the raw ones.

    Raises:
        ConvertError: keys missing, unexpected or of another shape, all listed; or not the layout of 1.x at all.
    """
    problems, components = KeyProblems(), []
    for name, prefix, build in (("unet", UNET, _unet), ("vae", VAE, _vae), ("text_encoder", TEXT, _text)):
        own = {key: shape for key, shape in shapes.items() if key.startswith(prefix) and not _is_known(key)}
        try:
            model, keys = build({key.removeprefix(prefix): shape for key, shape in own.items()}, list(own))
        except KeyError as error:  # of the renaming, which takes some keys for granted
            raise ConvertError(f"{source}: {prefix}{error.args[0]} is missing") from error
        except ValueError as error:
            raise ConvertError(f"{source}: {prefix}{error}") from error
        components.append(checked(Component(name, model, keys), shapes, problems))
    unet = components[0]
    averages = {name: _ema_key(key) for name, key in unet.keys.items()}
    used = {key for component in components for key in component.keys.values()}
    if has_average(shapes):
        averaged = checked(Component("unet", unet.model, averages), shapes, problems)
        used |= set(averaged.keys.values())
        if ema:
            components[0] = averaged
    problems.unexpected += [key for key in shapes if key not in used and not _is_known(key)]
    problems.raise_any(source)
    return components


def has_average(shapes: Shapes) -> bool:
    """Whether an official checkpoint holds a running average of its UNet beside the last weights."""
    return any(key.startswith(EMA) and not _is_known(key) for key in shapes)


def _is_known(key: str) -> bool:
    return key in BOOKKEEPING or key.startswith(VAE_LOSS)


def _ema_key(key: str) -> str:
    """LitEma's name: without "model." and without dots, which buffers of torch could not have."""
    return EMA + key.removeprefix("model.").replace(".", "")


def _unet(inner: Shapes, keys: list[str]) -> tuple[nn.Module, dict[str, str]]:
    config = layout.unet_config(inner)
    with torch.device("meta"):
        model = UNet2DConditionModel(**config)
    return model, convert_ldm_unet_checkpoint({key: _Key(key) for key in keys}, config)


def _vae(inner: Shapes, keys: list[str]) -> tuple[nn.Module, dict[str, str]]:
    config = layout.vae_config(inner)
    with torch.device("meta"):
        model = AutoencoderKL(**config)
    return model, convert_ldm_vae_checkpoint({key: _Key(key) for key in keys}, config)


def _text(inner: Shapes, keys: list[str]) -> tuple[nn.Module, dict[str, str]]:
    config = CLIPTextConfig(**layout.text_config(inner))
    with torch.device("meta"):
        model = CLIPTextModel(config)
    renamed = convert_ldm_clip_checkpoint({key: _Key(key) for key in keys})
    # transformers has dropped the first part of these names along the way.
    own = model.state_dict().keys()
    return model, {name if name in own else name.removeprefix("text_model."): key for name, key in renamed.items()}


def checked(component: Component, shapes: Shapes, problems: KeyProblems) -> Component:
    """The component with the keys that have a place in its model; what does not fit goes into `problems`."""
    state = component.model.state_dict()
    keys = {name: component.keys[name] for name in state if component.keys.get(name) in shapes}
    for name in state:
        if name not in keys:
            problems.missing.append(component.keys.get(name) or f"{component.name}.{name}")
    for name, key in keys.items():
        wanted, got = tuple(state[name].shape), tuple(shapes[key])
        if got != wanted and not is_pointwise(got, wanted):
            problems.misshapen.append(f"{key} is {got}, expected {wanted}")
    return Component(component.name, component.model, keys)


def is_pointwise(shape: tuple[int, ...], linear: tuple[int, ...]) -> bool:
    """Whether a weight is a 1x1 convolution (as the VAE's attention has them) where a linear layer is meant."""
    return len(linear) == 2 and shape == (*linear, 1, 1)
