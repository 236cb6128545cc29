"""Opening a checkpoint of others: memory-mapped, and without running anything that is pickled in it."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# What Lightning and OmegaConf leave in the pickle beside the weights: counters, callbacks, hyperparameters. Nothing of
# it is needed, so each of these names becomes an object that holds and does nothing, whatever it was.
_INERT_MODULES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
_INERT_NAMES = frozenset(
    ["typing.Any", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"]
    + [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("int", "float", "str", "list", "dict")]
)


class ConvertError(ValueError):
    """A checkpoint that cannot be converted; says what is wrong with it and what would be right."""


class _Inert:
    def __new__(cls, *values):
        return super().__new__(cls)

    def __init__(self, *values):
        pass

    def __setstate__(self, state):
        pass


def open_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights of a `.safetensors` file, or of one that `torch.save` wrote, by key.

    They are memory-mapped: what is used is read from the disk, and stays in memory as long as the result is there.

    Raises:
        ConvertError: not there, truncated, of another format, without weights, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise ConvertError(f"{path}: there is no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConvertError(f"{path} is truncated or not a safetensors file ({_first_line(error)})") from error
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
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ConvertError(
            f"{path} is truncated, or not a file that torch.save of torch 1.6 or newer wrote ({_first_line(error)})"
        ) from error
    refused = sorted(name for name in wanted if not (name in _INERT_NAMES or name.startswith(_INERT_MODULES)))
    if refused:
        raise ConvertError(
            f"{path} is refused: loading it would call {', '.join(refused[:10])}. A checkpoint is a pickle, which may "
            "run any code, and weights need none of these. Take a .safetensors file of the same weights, or one that "
            "torch.load(..., weights_only=True) accepts."
        )
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in wanted]):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConvertError(f"{path} cannot be loaded as weights only: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
