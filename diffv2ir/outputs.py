"""Any method's pictures as a folder, one for each example: written, and read back to be scored like ours.

The picture of an example is `ID.png` (or another format that is read here). A `/` in an id is a folder: the picture of
`night/0007` is `night/0007.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from diffv2ir.data import DataError, Example
from diffv2ir.data.examples import IMAGE_SUFFIXES
from diffv2ir.evaluate import Translation, central_square, gray_square
from diffv2ir.imaging import ImageError, open_image

_MAX_LISTED = 20
_ASPECT_TOLERANCE = 0.02


def output_path(folder: Path, example_id: str) -> Path:
    """Where the picture of an example lies: `ID.png` in the folder.

    Raises:
        ValueError: an id that leads out of the folder.
    """
    parts = PurePosixPath(example_id).parts
    if not parts or ".." in parts or PurePosixPath(example_id).is_absolute():
        raise ValueError(f"{example_id!r} cannot name a picture: an id must be a relative path without '..'")
    return folder.joinpath(*parts[:-1], parts[-1] + ".png")


def save_outputs(translations: Sequence[Translation], folder: Path) -> None:
    """Write each translation's infrared as 8-bit gray PNG at the evaluation size, named by its example.

    Raises:
        ValueError: an id that cannot name a file.
    """
    paths = [output_path(folder, translation.example.id) for translation in translations]
    for translation, path in zip(translations, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        translation.infrared.save(path)


def read_outputs(folder: Path, examples: Sequence[Example]) -> list[Translation]:
    """The pictures of a folder beside the photos and the real infrared of their examples.

    A picture is of the whole photo or of its central square, at any size; it is cut and resized as the real infrared.

    Raises:
        DataError: lists the examples whose picture is missing, there twice, unreadable or of another shape.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(path.relative_to(folder).as_posix().removesuffix(path.suffix), []).append(path)
    translations, problems = [], []
    for example in examples:
        try:
            photo = open_image(example.visible)
            made = _picture(example, found.get(example.id, []), photo.size)
            visible, real = central_square(photo), gray_square(example.infrared)
        except ImageError as error:
            problems.append(str(error))
            continue
        translations.append(Translation(example, visible, None, made, real, example.caption or ""))
    if problems:
        more = f"\n  ... and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise DataError(
            f"{len(problems)} of {len(examples)} pictures in {folder} cannot be scored (an example's is ID.png):\n  "
            + "\n  ".join(problems[:_MAX_LISTED])
            + more
        )
    return translations


def _picture(example: Example, paths: Sequence[Path], photo: tuple[int, int]) -> Image.Image:
    """The central square of the one picture of an example, whose photo has the size (width, height) `photo`."""
    if not paths:
        raise ImageError(f"{example.id}: missing")
    if len(paths) > 1:
        raise ImageError(f"{example.id}: there are several, {', '.join(path.name for path in paths)}")
    width, height = open_image(paths[0]).size
    shapes = (1.0, photo[0] / photo[1])
    if all(abs(width / height / shape - 1) > _ASPECT_TOLERANCE for shape in shapes):
        raise ImageError(
            f"{paths[0]}: has {width}x{height} pixels, which is neither a square nor the shape of its photo, "
            f"{photo[0]}x{photo[1]}"
        )
    return gray_square(paths[0])
