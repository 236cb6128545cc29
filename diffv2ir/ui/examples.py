"""Photos to try at once: Gradio and scikit-image bring them along under free licences."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# Package, file in it, style. Licences: assets/EXAMPLES.md.
_PHOTOS = (
    ("gradio", "media_assets/images/tower.jpg", "campus"),
    ("skimage", "data/astronaut.png", "general"),
    ("gradio", "media_assets/images/lion.jpg", "nir"),
    ("skimage", "data/coffee.png", "general"),
    ("skimage", "data/chelsea.png", "general"),
    ("skimage", "data/rocket.jpg", "flir"),
)


def example_photos(styles: tuple[str, ...]) -> list[tuple[str, str]]:
    """(path, style) of each example whose package is installed; a style that the bundle lacks becomes its first."""
    found = []
    for package, file, style in _PHOTOS:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / file if spec and spec.origin else None
        if path and path.is_file():
            found.append((str(path), style if style in styles else styles[0]))
    return found
