"""Widening conv_in, merging adapters and undoing it."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from make_bundle import add_adapter
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from diffv2ir.unet import load_lora, merge_lora, merge_lora_keeping_originals, restore_weights, widen_conv_in

ADAPTER = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 12, 4, 4, generator=generator), torch.randn(2, 5, 32, generator=generator)


@torch.no_grad()
def evaluate(unet, sample, text):
    return unet(sample[:, : unet.config.in_channels], 300, encoder_hidden_states=text).sample


def same_weights(unet, reference):
    ours, theirs = unet.state_dict(), reference.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("channels", [4, 8])
def test_widened_unet_computes_the_same(new_unet, inputs, channels):
    sample, text = inputs
    unet = new_unet(channels)
    before, weight, bias = evaluate(unet, sample, text), unet.conv_in.weight.clone(), unet.conv_in.bias.clone()
    assert widen_conv_in(unet, 12) is unet
    assert torch.equal(unet.conv_in.weight[:, :channels], weight)
    assert torch.equal(unet.conv_in.bias, bias)
    assert unet.conv_in.weight.shape[1] == unet.conv_in.in_channels == unet.config.in_channels == 12
    assert not unet.conv_in.weight[:, channels:].any()
    for scale in (0, 1, 100):  # whatever the condition is
        changed = torch.cat([sample[:, :channels], sample[:, channels:] * scale], dim=1)
        torch.testing.assert_close(evaluate(unet, changed, text), before, rtol=0, atol=1e-5)


def test_new_channels_are_trained(new_unet, inputs):
    unet = widen_conv_in(new_unet(4), 12)
    unet(inputs[0], 300, encoder_hidden_states=inputs[1]).sample.square().mean().backward()
    assert unet.conv_in.weight.requires_grad and unet.conv_in.bias.requires_grad
    assert unet.conv_in.weight.grad[:, 4:].abs().sum() > 0


def test_widening_draws_no_random_numbers(new_unet):
    unet = new_unet(4)
    before = torch.get_rng_state()
    widen_conv_in(unet, 12)
    assert torch.equal(torch.get_rng_state(), before)


def test_widened_unet_is_saved_and_loaded(new_unet, inputs, tmp_path):
    unet = widen_conv_in(new_unet(4), 12)
    unet.save_pretrained(tmp_path)
    assert same_weights(UNet2DConditionModel.from_pretrained(tmp_path), unet)


def test_shrinking_is_refused(new_unet):
    unet = new_unet(12)
    with pytest.raises(ValueError, match="12 input channels.*4"):
        widen_conv_in(unet, 4)
    assert unet.config.in_channels == unet.conv_in.in_channels == 12
    assert widen_conv_in(unet, 12).conv_in.in_channels == 12


def test_stable_diffusion_is_widened_at_its_true_size():
    """The UNet of Stable Diffusion 1.5, without the memory for its weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    widen_conv_in(unet, 12)
    assert unet.conv_in.weight.shape == (320, 12, 3, 3)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964 + 320 * 8 * 9


def test_merged_equals_applied_and_is_undone_bit_by_bit(new_unet, inputs):
    original = new_unet()
    unet = add_adapter(new_unet())
    applied = evaluate(unet, *inputs)
    before = merge_lora_keeping_originals(unet)
    merged = evaluate(unet, *inputs)
    assert (applied - evaluate(original, *inputs)).abs().max() > 0.01
    torch.testing.assert_close(merged, applied, rtol=0, atol=1e-4)
    assert unet.state_dict().keys() == original.state_dict().keys()
    assert {key for key, value in unet.state_dict().items() if not torch.equal(value, original.state_dict()[key])} == {
        *before
    }
    restore_weights(unet, before)
    assert same_weights(unet, original)


def test_merging_needs_an_adapter(new_unet):
    with pytest.raises(ValueError, match="no LoRA adapter"):
        merge_lora(new_unet())


def test_another_adapter_fits_after_merging(new_unet):
    unet = merge_lora(add_adapter(new_unet()))
    merge_lora(add_adapter(unet, targets=["to_k"]))
    assert same_weights_outside_adapters(unet, new_unet())


def same_weights_outside_adapters(unet, reference):
    changed = [key for key, value in unet.state_dict().items() if not torch.equal(value, reference.state_dict()[key])]
    return changed and all(any(part in key for part in ("to_q", "conv1", "to_k")) for key in changed)


def test_infinite_adapter_leaves_the_weights_alone(new_unet):
    unet = add_adapter(new_unet())
    # The last layer, so that others are merged before it is met.
    last = [parameter for key, parameter in unet.named_parameters() if "lora_B" in key][-1]
    last.data.fill_(float("inf"))
    with pytest.raises(ValueError, match="[Nn]a[Nn]|finite|broken"):
        merge_lora(unet)
    assert same_weights(unet, new_unet())


def test_out_of_memory_leaves_the_weights_alone(new_unet, monkeypatch):
    unet = add_adapter(new_unet())
    last = [layer for layer in unet.modules() if isinstance(layer, LoraLayer)][-1]
    monkeypatch.setattr(last, "merge", raise_out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        merge_lora(unet)
    assert same_weights(unet, new_unet())


def raise_out_of_memory(*arguments, **options):
    raise torch.OutOfMemoryError("out of memory")


def test_out_of_memory_while_loading_is_no_damaged_adapter(new_unet, adapter, monkeypatch):
    unet = new_unet()
    load = unet.load_lora_adapter
    monkeypatch.setattr(unet, "load_lora_adapter", lambda *a, **o: (load(*a, **o), raise_out_of_memory()))
    with pytest.raises(torch.OutOfMemoryError):
        load_lora(unet, adapter, "night")
    assert same_weights(unet, new_unet())


@pytest.fixture
def adapter(new_unet, tmp_path):
    add_adapter(new_unet(), "night").save_lora_adapter(tmp_path, "night")
    return tmp_path


def test_saved_adapter_is_loaded(new_unet, inputs, tmp_path):
    saved, loaded = add_adapter(new_unet()), new_unet()
    saved.save_lora_adapter(tmp_path, "style")
    load_lora(loaded, tmp_path, "night")
    assert torch.equal(evaluate(loaded, *inputs), evaluate(saved, *inputs))


def damage_nothing_there(path):
    path.unlink()


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_text(path):
    path.write_text("not tensors")


def damage_empty(path):
    save_file({}, path)


def damage_shapes(path):
    save_file({key: torch.cat([value, value], dim=-1) for key, value in load_file(path).items()}, path)


def damage_other_layers(path):
    save_file({key.replace("to_q", "to_z").replace("conv1", "conv9"): v for key, v in load_file(path).items()}, path)


def damage_other_blocks(path):
    """As from a UNet of more blocks: some layers fit, others do not exist here."""
    tensors = load_file(path)
    deeper = {key.replace("down_blocks.1", "down_blocks.3"): value.clone() for key, value in tensors.items()}
    assert deeper.keys() != tensors.keys()
    save_file({**tensors, **deeper}, path)


@pytest.mark.parametrize(
    "damage",
    [damage_nothing_there, damage_cut, damage_text, damage_empty, damage_shapes, damage_other_layers]
    + [damage_other_blocks],
)
def test_adapter_that_does_not_fit_is_refused(new_unet, adapter, damage):
    damage(adapter / ADAPTER)
    unet = new_unet()
    with pytest.raises(ValueError, match="style 'night'"):
        load_lora(unet, adapter, "night")
    assert same_weights(unet, new_unet()), "the refused adapter left something behind"
    merge_lora(add_adapter(unet, "night"))  # and another one can still be attached


def test_loading_leaves_the_unet_as_it_was(new_unet, adapter):
    unet = new_unet()
    reference = copy.deepcopy(unet)
    load_lora(unet, adapter, "night")
    restore_weights(unet, merge_lora_keeping_originals(unet))
    assert same_weights(unet, reference)
