"""DiffV2IR: visible photo in, infrared picture out, by latent diffusion guided by vision and language.

The heavy parts load on first use, so `import diffv2ir` stays instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffv2ir.bundle import BundleError
    from diffv2ir.imaging import ImageError
    from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline, Estimate, Output
    from diffv2ir.settings import PRESETS, GenerationSettings

__version__ = "0.1.0"

_HOMES = {
    "BundleError": "bundle",
    "Conditioning": "pipeline",
    "DiffV2IRPipeline": "pipeline",
    "Estimate": "pipeline",
    "GenerationSettings": "settings",
    "ImageError": "imaging",
    "Output": "pipeline",
    "PRESETS": "settings",
}

__all__ = [
    "PRESETS",
    "BundleError",
    "Conditioning",
    "DiffV2IRPipeline",
    "Estimate",
    "GenerationSettings",
    "ImageError",
    "Output",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffv2ir' has no attribute {name!r}")
    return getattr(import_module(f"diffv2ir.{_HOMES[name]}"), name)
