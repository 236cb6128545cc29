"""Changes to the UNet: more input channels, low-rank adapters merged into the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffv2ir.bundle import BundleError
from diffv2ir.memory import is_out_of_memory


def widen_conv_in(unet: UNet2DConditionModel, in_channels: int) -> UNet2DConditionModel:
    """Give the UNet more input channels; what it computes from the old ones stays as it is.

    The new channels of conv_in start at zero, the old weights and the bias are kept (Sec. 3.3 of the paper: 4 -> 12, or
    8 -> 12 from an InstructPix2Pix UNet). Changes `unet` and returns it.

    Raises:
        ValueError: `in_channels` is smaller than what the UNet has.
    """
    old = unet.conv_in
    if in_channels < old.in_channels:
        raise ValueError(f"the UNet has {old.in_channels} input channels, which cannot be reduced to {in_channels}")
    if in_channels == old.in_channels:
        return unet
    weight = old.weight.new_zeros(old.out_channels, in_channels, *old.kernel_size)
    weight[:, : old.in_channels] = old.weight.detach()
    bias = old.bias.detach().clone()
    # Made on "meta": a random initialisation would draw from the global generator, and be thrown away.
    new = nn.Conv2d(
        in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, dtype=weight.dtype, device="meta"
    )
    new.weight = nn.Parameter(weight, requires_grad=old.weight.requires_grad)
    new.bias = nn.Parameter(bias, requires_grad=old.bias.requires_grad)
    unet.conv_in = new
    unet.register_to_config(in_channels=in_channels)
    return unet


def merge_lora(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Add the active low-rank adapters to the weights (through peft) and remove them. Changes `unet` and returns it.

    Raises:
        ValueError: there is no adapter, or a merged weight would not be finite.

    Whatever is raised, the weights are then as before, without an adapter.
    """
    merge_lora_keeping_originals(unet)
    return unet


def merge_lora_keeping_originals(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """As `merge_lora`; returns the weights as they were before, by parameter name, for `restore_weights`."""
    layers = _lora_layers(unet)
    if not layers:
        raise ValueError("the UNet has no LoRA adapter to merge")
    originals: dict[str, Tensor] = {}
    try:
        for name, layer in layers.items():
            originals[f"{name}.weight"] = layer.get_base_layer().weight.detach().clone()
            layer.merge(safe_merge=True)
    except BaseException:  # also out of memory, or interrupted: never half merged
        _remove_lora(unet)
        restore_weights(unet, originals)
        raise
    _remove_lora(unet)
    return originals


@torch.no_grad()
def restore_weights(unet: nn.Module, originals: dict[str, Tensor]) -> None:
    """Write weights back, bit by bit as they were."""
    for name, value in originals.items():
        unet.get_parameter(name).copy_(value)


def load_lora(unet: UNet2DConditionModel, folder: str | Path, name: str) -> None:
    """Attach the adapter that `unet.save_lora_adapter(folder, name)` wrote.

    Raises:
        BundleError: the file is missing or damaged, or made for a UNet of other layers or shapes; `unet` is then left
            without any adapter.
        RuntimeError: out of memory, as it is; without any adapter, too.
    """
    path = Path(folder) / "pytorch_lora_weights.safetensors"
    if not path.is_file():
        raise BundleError(f"style {name!r}: {path} is missing")
    try:
        with safe_open(path, "pt") as tensors:
            wanted = {key.rpartition(".lora_")[0] for key in tensors.keys()}
        # Only a local file: a name would be looked up on the hub.
        unet.load_lora_adapter(
            str(folder), weight_name=path.name, prefix=None, adapter_name=name, local_files_only=True
        )
        # peft leaves out layers that it does not find.
        unknown = sorted(wanted - _lora_layers(unet).keys())
        if unknown or not wanted:
            raise ValueError(f"the UNet has no layer {', '.join(unknown[:3])}" if unknown else "it is empty")
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        _remove_lora(unet)
        if is_out_of_memory(error):
            raise
        raise BundleError(f"style {name!r} in {folder} does not fit this UNet: {error}") from error


def _lora_layers(unet: nn.Module) -> dict[str, nn.Module]:
    from peft.tuners.lora import LoraLayer  # slow to import, and only styles and training need it

    return {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}


def _remove_lora(unet: UNet2DConditionModel) -> None:
    """Put the plain layers, with the weights they have, back in the place of those with adapters."""
    for name, layer in _lora_layers(unet).items():
        parent, _, attribute = name.rpartition(".")
        setattr(unet.get_submodule(parent), attribute, layer.get_base_layer())
    if hasattr(unet, "peft_config"):
        del unet.peft_config
    unet._hf_peft_config_loaded = False
