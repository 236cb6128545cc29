"""Stable Diffusion 1.x as CompVis wrote it, in plain torch: the modules' names are the keys of official checkpoints.

An implementation of its own, to compare converted models with; nothing of diffusers or transformers is in it.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class TimestepSequential(nn.Sequential):
    def forward(self, x, emb, context):
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class ResBlock(nn.Module):
    def __init__(self, channels, emb_channels, out_channels):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Dropout(0),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, emb):
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Module):
    def __init__(self, width, context_width, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0))

    def forward(self, x, context):
        b, n, c = x.shape
        q, k, v = (
            part.view(b, -1, self.heads, c // self.heads).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        attention = (q @ k.transpose(2, 3) * (c // self.heads) ** -0.5).softmax(dim=-1)
        return self.to_out((attention @ v).transpose(1, 2).reshape(b, n, c))


class GEGLU(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Dropout(0), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width, context_width, heads):
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads)
        self.ff = FeedForward(width)
        self.attn2 = CrossAttention(width, context_width, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, context):
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width, context_width, heads):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context_width, heads)])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x, context):
        b, c, h, w = x.shape
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # [B, h w, C]
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).view(b, c, h, w))


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class UNet(nn.Module):
    """openaimodel's UNetModel with spatial transformers. The defaults are those of Stable Diffusion 1.5."""

    def __init__(
        self, in_channels=4, width=320, multiples=(1, 2, 4, 4), blocks=2, attention=(1, 2, 4), context=768, heads=8
    ):
        super().__init__()
        self.width, emb = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.input_blocks = nn.ModuleList([TimestepSequential(nn.Conv2d(in_channels, width, 3, padding=1))])
        channels, skips, scale = width, [width], 1
        for level, multiple in enumerate(multiples):
            for _ in range(blocks):
                layers = [ResBlock(channels, emb, multiple * width)]
                channels = multiple * width
                if scale in attention:
                    layers.append(SpatialTransformer(channels, context, heads))
                self.input_blocks.append(TimestepSequential(*layers))
                skips.append(channels)
            if level + 1 < len(multiples):
                self.input_blocks.append(TimestepSequential(Downsample(channels)))
                skips.append(channels)
                scale *= 2
        self.middle_block = TimestepSequential(
            ResBlock(channels, emb, channels),
            SpatialTransformer(channels, context, heads),
            ResBlock(channels, emb, channels),
        )
        self.output_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(multiples))):
            for number in range(blocks + 1):
                layers = [ResBlock(channels + skips.pop(), emb, multiple * width)]
                channels = multiple * width
                if scale in attention:
                    layers.append(SpatialTransformer(channels, context, heads))
                if level and number == blocks:
                    layers.append(Upsample(channels))
                    scale //= 2
                self.output_blocks.append(TimestepSequential(*layers))
        self.out = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, 4, 3, padding=1))

    def forward(self, x, timesteps, context):
        half = self.width // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
        angles = timesteps[:, None].float() * frequencies
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, context)
            skips.append(x)
        x = self.middle_block(x, emb, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, context)
        return self.out(x)


class ResnetBlock(nn.Module):
    def __init__(self, channels, out_channels):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        b, c, h, w = x.shape
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2) for part in (self.q, self.k, self.v))  # [B, C, h w]
        attention = (q.transpose(1, 2) @ k * c**-0.5).softmax(dim=2)
        return x + self.proj_out((v @ attention.transpose(1, 2)).view(b, c, h, w))


class PaddedDownsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def middle(channels):
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = (
        ResnetBlock(channels, channels),
        AttnBlock(channels),
        ResnetBlock(channels, channels),
    )
    return mid


class Encoder(nn.Module):
    def __init__(self, width, multiples, blocks, latents):
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down, channels = nn.ModuleList(), width
        for level, multiple in enumerate(multiples):
            down = nn.Module()
            down.block = nn.ModuleList()
            for _ in range(blocks):
                down.block.append(ResnetBlock(channels, multiple * width))
                channels = multiple * width
            down.attn = nn.ModuleList()
            if level + 1 < len(multiples):
                down.downsample = PaddedDownsample(channels)
            self.down.append(down)
        self.mid = middle(channels)
        self.norm_out = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, 2 * latents, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for down in self.down:
            for block in down.block:
                x = block(x)
            x = down.downsample(x) if hasattr(down, "downsample") else x
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, width, multiples, blocks, latents):
        super().__init__()
        channels = width * multiples[-1]
        self.conv_in = nn.Conv2d(latents, channels, 3, padding=1)
        self.mid = middle(channels)
        self.up = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(multiples))):
            up = nn.Module()
            up.block = nn.ModuleList()
            for _ in range(blocks + 1):
                up.block.append(ResnetBlock(channels, multiple * width))
                channels = multiple * width
            up.attn = nn.ModuleList()
            if level:
                up.upsample = Upsample(channels)
            self.up.insert(0, up)
        self.norm_out = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z):
        x = self.conv_in(z)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        for up in reversed(self.up):
            for block in up.block:
                x = block(x)
            x = up.upsample(x) if hasattr(up, "upsample") else x
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """AutoencoderKL. The defaults are those of Stable Diffusion 1.5 (kl-f8)."""

    def __init__(self, width=128, multiples=(1, 2, 4, 4), blocks=2, latents=4):
        super().__init__()
        self.encoder = Encoder(width, multiples, blocks, latents)
        self.decoder = Decoder(width, multiples, blocks, latents)
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)

    def moments(self, x):
        return self.quant_conv(self.encoder(x))

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = (
            part(x).view(b, n, self.heads, c // self.heads).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(2, 3) * (c // self.heads) ** -0.5
        scores = scores + torch.full((n, n), -torch.inf).triu(1)  # a token sees those before it
        return self.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c))


class ClipLayer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        inner = self.mlp.fc1(self.layer_norm2(x))
        return x + self.mlp.fc2(inner * torch.sigmoid(1.702 * inner))


class ClipText(nn.Module):
    """CLIP's text model, as FrozenCLIPEmbedder holds it. The defaults are those of ViT-L/14."""

    def __init__(self, vocabulary=49408, width=768, layers=12, positions=77):
        super().__init__()
        self.text_model = text = nn.Module()
        text.embeddings = nn.Module()
        text.embeddings.token_embedding = nn.Embedding(vocabulary, width)
        text.embeddings.position_embedding = nn.Embedding(positions, width)
        text.embeddings.register_buffer("position_ids", torch.arange(positions)[None])
        text.encoder = nn.Module()
        text.encoder.layers = nn.ModuleList([ClipLayer(width, width // 64) for _ in range(layers)])
        text.final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens):
        embeddings = self.text_model.embeddings
        x = embeddings.token_embedding(tokens) + embeddings.position_embedding(embeddings.position_ids)
        for layer in self.text_model.encoder.layers:
            x = layer(x)
        return self.text_model.final_layer_norm(x)


class LatentDiffusion(nn.Module):
    """All of a checkpoint but its bookkeeping."""

    def __init__(self, unet, vae, text):
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = unet
        self.first_stage_model = vae
        self.cond_stage_model = nn.Module()
        self.cond_stage_model.transformer = text


def make_official(in_channels=12, vocabulary=195, seed=0):
    """A small model with weights all of which matter: none is zero, or one, as torch would initialise it."""
    torch.manual_seed(seed)
    model = LatentDiffusion(
        UNet(in_channels, width=32, multiples=(1, 2, 2), blocks=1, attention=(1, 2), context=128),
        Autoencoder(width=32, multiples=(1, 2), blocks=1),
        ClipText(vocabulary, width=128, layers=2, positions=16),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def noise_schedule():
    """The buffers of `DDPM.register_schedule` (linear_start 0.00085, linear_end 0.012, 1000 steps)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    variance = betas * (1 - before) / (1 - kept)
    buffers = {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": kept.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - kept).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - kept).log(),
        "sqrt_recip_alphas_cumprod": kept.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / kept - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - kept),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - kept),
    }
    return {name: value.float() for name, value in buffers.items()}


def averaged(unet):
    """LitEma's buffers for a UNet whose averages are `unet`'s weights."""
    names = {"model_ema." + f"diffusion_model.{name}".replace(".", ""): p for name, p in unet.named_parameters()}
    return {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7), **names}


def make_checkpoint(model, average=None):
    """What Lightning saves of a model, with the averaged UNet `average` if given."""
    state = {**noise_schedule(), **model.state_dict()}
    if average is not None:
        state |= {name: value.detach().clone() for name, value in averaged(average).items()}
    return {"epoch": 3, "global_step": 1000, "pytorch-lightning_version": "1.4.2", "state_dict": state}
