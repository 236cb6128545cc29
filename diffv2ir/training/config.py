"""YAML files -> the frozen dataclasses of this package, with every unknown or missing key named."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from diffv2ir.data import Example

T = TypeVar("T")


def load_config(path: str | Path, kind: type[T]) -> T:
    """Read a YAML file into the dataclass `kind`.

    Raises:
        ValueError: the file has an unknown key, lacks a required one, or a value is refused; the message names it.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    try:
        return from_mapping(values, kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def example_weights(source_weights: Mapping[str, float], examples: Sequence[Example]) -> list[float] | None:
    """Relative frequencies of examples, that of their "source/kind", else of their source, else 1.

    None without `source_weights`: every example is as frequent as the others.
    """
    if not source_weights:
        return None
    return [
        source_weights.get(f"{example.source}/{example.kind}", source_weights.get(example.source, 1.0))
        for example in examples
    ]


def from_mapping(values: dict[str, Any], kind: type[T]) -> T:
    """Build dataclass `kind` from a mapping; nested dataclasses from nested mappings, tuples from lists."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"unknown setting(s) {unknown} of {kind.__name__}; it has {sorted(fields)}")
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = _convert(value, hints[name])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error
    return kind(**converted)


def _convert(value: Any, hint: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            return from_mapping(value, option)
        if typing.get_origin(option) is tuple and isinstance(value, list):
            element = typing.get_args(option)[0]
            return tuple(_convert(item, element) if dataclasses.is_dataclass(element) else item for item in value)
        if option is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            return float(value)  # YAML reads 1e-4 as a string
        kind = typing.get_origin(option) or option
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
    names = " or ".join("a list" if typing.get_origin(o) is tuple else getattr(o, "__name__", str(o)) for o in options)
    raise ValueError(f"expected {names}, got {value!r}")
