"""Photos in, pictures out: reading with orientation, working size, arrays."""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from diffv2ir.members import TarMember
from diffv2ir.settings import RESOLUTION_RULES

if TYPE_CHECKING:
    from torch import Tensor

# A photo longer than this is denoised with a shorter side below the resolution, which bounds memory and time.
MAX_ASPECT = 3.0

# Two pictures of one section may differ this much in aspect ratio.
_ASPECT_TOLERANCE = 0.02
_HEIC = (
    "a HEIC photo, which cannot be read here; export it as JPEG (an iPhone takes JPEG with Settings, Camera, Formats, "
    "Most Compatible)"
)
# Of the sides in the paper's released code.
_CODE_MULTIPLE = 64
# Gain control: the share of the pixels that is left out at either end; the least range that is spread to the whole.
_CLIPPED, _LEAST_SPAN = 0.005, 0.25

# What Pillow's decoders raise over damaged files, besides saying so properly.
_DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError, struct.error)

_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}

# Of a photo that is opened. Pillow's own limit, beyond which it refuses, is twice its warning at 89 million.
_max_pixels = 178_956_970

ImageSource = Image.Image | np.ndarray | str | os.PathLike | TarMember


class ImageError(ValueError):
    """An image that cannot be read or used; says which and why."""


def limit_pixels(pixels: int) -> None:
    """Refuse larger photos from now on, before they are decoded; also wherever else Pillow opens one."""
    global _max_pixels
    _max_pixels = Image.MAX_IMAGE_PIXELS = pixels


def pixel_limit() -> int:
    """The most pixels that a photo may have, see `limit_pixels`."""
    return _max_pixels


def open_image(source: ImageSource) -> Image.Image:
    """Any image as 8-bit RGB, upright (EXIF orientation applied).

    Args:
        source: a path, a file in a tar, a PIL image, or an array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8,
            uint16 or float in [0, 1]. Transparency is laid on white; 16-bit images are scaled to 8 bit.

    Raises:
        ImageError: missing, unreadable, damaged or far too large file; wrong shape, type or range of an array.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "image")
    if not isinstance(source, (str, os.PathLike, TarMember)):
        raise ImageError(f"expected an image, an array or a path, got {type(source).__name__}")
    path = source if isinstance(source, TarMember) else Path(source)
    try:
        if not path.is_file():
            is_folder = isinstance(path, Path) and path.is_dir()
            raise ImageError(f"{path}: {'is a folder' if is_folder else 'there is no such file'}")
        with Image.open(io.BytesIO(path.read_bytes()) if isinstance(path, TarMember) else path) as image:
            if image.width * image.height > _max_pixels:
                raise ImageError(
                    f"{path}: has {image.width}x{image.height} pixels, more than the {_max_pixels:,} that are allowed; "
                    "make it smaller"
                )
            return _upright_rgb(image, str(path))
    except UnidentifiedImageError:
        what = _HEIC if _is_heic(path) else "not an image, or of an unknown format"
        raise ImageError(f"{path}: {what}") from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"{path}: has more than the {_max_pixels:,} pixels that are allowed; make it smaller"
        ) from None
    except ImageError:
        raise
    except _DECODER_ERRORS as error:
        raise ImageError(f"{path}: cannot be read ({error})") from None


def _is_heic(path: Path | TarMember) -> bool:
    """Whether a file says that it is a HEIC photo, by the brand in its first box."""
    start = path.read_bytes()[:12]
    return start[4:8] == b"ftyp" and start[8:] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def working_size(
    size: tuple[int, int], resolution: int, multiple: int, rule: str = RESOLUTION_RULES[0]
) -> tuple[int, int]:
    """(width, height) at which a photo of `size` is denoised.

    The aspect ratio is kept and the shorter side becomes `resolution`; if the longer one would then exceed `MAX_ASPECT`
    times the resolution, the longer side becomes that. Both are rounded to a multiple of `multiple`, what VAE and UNet
    halve together, and are at least one multiple.

    With the rule "longer", which is that of the paper's released code, both sides are multiples of 64: the shorter
    one, of the photo whose longer side is `resolution`, is rounded up, and the longer one that goes with it down. (That
    code cuts off what is then too long; here the photo is resized, by a few percent at most, and nothing is lost.)
    """
    if rule == "longer":
        step = math.lcm(_CODE_MULTIPLE, multiple)
        shorter = -(-min(size) * resolution // (max(size) * step)) * step
        most = max(step, int(MAX_ASPECT * resolution) // step * step)
        longer = min(most, max(size) * shorter // (min(size) * step) * step)
        return (longer, shorter) if size[0] >= size[1] else (shorter, longer)
    scale = min(resolution / min(size), MAX_ASPECT * resolution / max(size))
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
    return width, height


def fitted_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(width, height) of `size` made so large that the longer side is `longest`; the aspect ratio is kept."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def limited_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """`fitted_size` where the longer side is above `longest`, else `size`."""
    return fitted_size(size, longest) if max(size) > longest else size


def check_same_section(image: Image.Image, what: str, picture: Image.Image, advice: str = "") -> None:
    """Two pictures of one section have the same aspect ratio, but for the rounding of their sizes.

    Raises:
        ImageError: the aspect ratio of `image`, which is `what`, is not that of `picture`; ends in `advice`.
    """
    ratio = (image.width / image.height) / (picture.width / picture.height)
    # One pixel of rounding weighs more the smaller the image is.
    if abs(ratio - 1) > _ASPECT_TOLERANCE + 1 / min(image.size):
        raise ImageError(
            f"{what} ({image.width}x{image.height}) has another aspect ratio than the photo "
            f"({picture.width}x{picture.height}){advice}"
        )


def to_tensor(image: Image.Image) -> Tensor:
    """RGB or gray image -> float32 [3, H, W] in [-1, 1]."""
    import torch  # here: the page reads images before it needs torch, which takes seconds to import

    array = np.array(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


def to_gray(pixels: Tensor) -> list[Image.Image]:
    """Decoded [B, 3, H, W] in [-1, 1] -> 8-bit gray images: the mean over the channels."""
    gray = ((pixels.float().mean(dim=1) + 1) * 127.5).round().clamp(0, 255).byte()  # [B, H, W]
    return [Image.fromarray(array) for array in gray.cpu().numpy()]


def from_levels(levels: np.ndarray) -> Image.Image:
    """Gray levels (H, W) in [0, 1] -> 8-bit gray image."""
    return Image.fromarray((levels.clip(0, 1) * 255).round().astype(np.uint8))


def measure_gain(levels: np.ndarray) -> tuple[float, float]:
    """The mean of gray levels, and the factor about it that spreads them over the whole range.

    All but the darkest and brightest half per cent count. They are spread fourfold at most, so that the noise of an
    even picture does not become its subject.
    """
    low, high = np.quantile(levels, (_CLIPPED, 1 - _CLIPPED))
    return float(levels.mean()), float(1 / max(high - low, _LEAST_SPAN))


def control_gain(levels: np.ndarray, share: float, measured: tuple[float, float] | None = None) -> np.ndarray:
    """Gray levels (H, W) in [0, 1], spread about their mean, as an infrared camera's automatic gain control does it.

    The mean stays: a night that is nearly black does not become gray.

    Args:
        share: in [0, 1], of the way to the whole range.
        measured: mean and factor; None = `measure_gain` of this picture.
    """
    mean, gain = measured or measure_gain(levels)
    return (mean + (1 + share * (gain - 1)) * (levels - mean)).clip(0, 1).astype(levels.dtype)


def content_hash(image: Image.Image) -> str:
    """SHA-256 of an image's size and pixels."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if min(image.size) < 1:
            raise ImageError(f"{name}: has no pixels ({image.width}x{image.height})")
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return _from_deep_gray(np.asarray(image), name)
        if image.mode in _PREMULTIPLIED:
            image = image.convert(_PREMULTIPLIED[image.mode])
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        if image.mode == "LAB":
            return _from_lab(image)
        return image.convert("RGB")
    except ImageError:
        raise
    except _DECODER_ERRORS as error:
        raise ImageError(f"{name}: cannot be read ({error})") from None


def _from_lab(image: Image.Image) -> Image.Image:
    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    return ImageCms.applyTransform(image, transform)


def _from_deep_gray(array: np.ndarray, name: str) -> Image.Image:
    """16-bit gray by its full range; 32-bit integers and floats as they are if they fit 8 bit, else as 16-bit."""
    values = array.astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name}: gray values must be finite and from 0 to 65535")
    if array.dtype.kind == "u" or values.max() > 255:
        values /= 257
    return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or 0 in array.shape:
        raise ImageError(f"an image array must be (H, W), (H, W, 3) or (H, W, 4), got shape {array.shape}")
    if array.dtype.newbyteorder("=") == np.uint16:
        array = (array / 257).round().astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ImageError("a float image array must be finite and in [0, 1]")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"an image array must be uint8, uint16 or float, got {array.dtype}")
    return _upright_rgb(Image.fromarray(np.ascontiguousarray(array)), "array")
