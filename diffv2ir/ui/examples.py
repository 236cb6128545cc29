"""Photos to try at once: Gradio and scikit-image bring them along under free licences."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# Package, file in it, style, what it shows. Licences: assets/EXAMPLES.md.
_PHOTOS = (
    ("gradio", "media_assets/images/tower.jpg", "nir", "Tower"),
    ("gradio", "media_assets/images/lion.jpg", "nir", "Lion"),
    ("skimage", "data/rocket.jpg", "flir", "Rocket"),
    ("skimage", "data/chelsea.png", "flir", "Cat"),
    ("skimage", "data/coffee.png", "nir", "Coffee"),
    ("skimage", "data/astronaut.png", "nir", "Astronaut"),
)


def example_photos(styles: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(path, style, what it shows) of each example whose package is installed.

    A style that the bundle lacks becomes its first.
    """
    found = []
    for package, file, style, label in _PHOTOS:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / file if spec and spec.origin else None
        if path and path.is_file():
            found.append((str(path), style if style in styles else styles[0], label))
    return found
