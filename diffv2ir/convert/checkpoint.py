"""Opening a checkpoint of others: memory-mapped, and without running anything that is pickled in it."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffv2ir.errors import first_line

# What Lightning and OmegaConf leave in the pickle beside the weights: counters, callbacks, hyperparameters and their
# values. Nothing of it is needed, so each of these names becomes an object that does nothing, whatever it was.
# No name belongs here that calls what it is given: a file that has one is refused, though nothing would be called.
_INERT_MODULES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
_INERT_BY_MODULE = {
    "argparse": "Namespace",
    "builtins": "bool bytes dict float frozenset int list object str tuple",
    "datetime": "date datetime time timedelta timezone",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",  # Python 3.13
    "typing": "Any",
}
_INERT_NAMES = frozenset(f"{module}.{name}" for module, names in _INERT_BY_MODULE.items() for name in names.split())
# Dicts of other classes: what is put into them has to go somewhere.
_DICT_NAMES = frozenset(
    ["collections.defaultdict", "pytorch_lightning.utilities.parsing.AttributeDict"]
    + [f"{fabric}.utilities.data.AttributeDict" for fabric in ("lightning_fabric", "lightning.fabric")]
)
# How a file begins that torch before 1.6 wrote, or `torch.save(..., _use_new_zipfile_serialization=False)`.
_LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)


class ConvertError(ValueError):
    """A checkpoint that cannot be converted; says what is wrong with it and what would be right."""


class _Inert:
    def __new__(cls, *values):
        return super().__new__(cls)

    def __init__(self, *values):
        pass

    def __setstate__(self, state):
        pass


class _Dict:
    def __new__(cls, *values):
        return {}


def open_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights of a `.safetensors` file, or of one that `torch.save` wrote, by key.

    They are memory-mapped: what is used is read from the disk, and stays in memory as long as the result is there.

    Raises:
        ConvertError: not there, truncated, of another or an old format, without weights, or a pickle that wants to run
            code.
    """
    if not path.is_file():
        raise ConvertError(f"{path}: there is no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConvertError(f"{path} is truncated or not a safetensors file ({first_line(error)})") from error
    content = _load_pickle(path)
    weights = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(weights):
        others = [str(key) for key in weights if key not in tensors]
        raise ConvertError(
            f"{path} is not a checkpoint: expected weights by name, as a dict or under 'state_dict' of one, got "
            + (f"others too: {', '.join(others[:5])}" if tensors else "none")
        )
    return tensors


def _load_pickle(path: Path):
    _refuse_legacy(path)
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ConvertError(
            f"{path} is truncated, or not a file that torch.save of torch 1.6 or newer wrote ({first_line(error)})"
        ) from error
    refused = sorted(name for name in wanted if _stand_in(name) is None)
    if refused:
        raise ConvertError(
            f"{path} is refused: loading it would call {', '.join(refused[:10])}. A checkpoint is a pickle, which may "
            "run any code, and weights need none of these. Take a .safetensors file of the same weights, or one that "
            "torch.load(..., weights_only=True) accepts."
        )
    try:
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in wanted]):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, ValueError, AttributeError) as error:
        raise ConvertError(f"{path} cannot be loaded as weights only: {first_line(error)}") from error


def _stand_in(name: str) -> type | None:
    """What stands for a name of a pickle; None if nothing does."""
    if name in _DICT_NAMES:
        return _Dict
    return _Inert if name in _INERT_NAMES or name.startswith(_INERT_MODULES) else None


def _refuse_legacy(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_LEGACY)) != _LEGACY:
            return
    new = path.with_name(f"{path.stem}-new{path.suffix}")
    raise ConvertError(
        f"{path} is in the format of torch before 1.6, which is read as a whole only. Save it anew, and convert that: "
        f"`import torch; torch.save(torch.load({str(path)!r}, map_location='cpu', weights_only=True), {str(new)!r})`"
    )
