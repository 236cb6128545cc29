"""The flags of the settings: one for each field, and what they make of a bundle's own."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffv2ir.loading import CommandError
from diffv2ir.settings import PRESETS, GenerationSettings

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """`--preset` and one flag per field of `GenerationSettings`; what is not given stays as the bundle says."""
    group = parser.add_argument_group("settings", "What is not given is taken from the bundle.")
    group.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="a set of settings; fast and balanced change nothing "
        "where the bundle's own settings are as fast; the flags below go on top",
    )
    hints = typing.get_type_hints(GenerationSettings)
    for field in dataclasses.fields(GenerationSettings):
        kind = next(
            kind for kind in (int, float, str) if kind in (hints[field.name], *typing.get_args(hints[field.name]))
        )
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            choices=field.metadata.get("choices"),
            metavar=None if "choices" in field.metadata else {int: "N", float: "X", str: "NAME"}[kind],
            help=f"{field.metadata['label']}: {field.metadata['help']}{_range(field.metadata)}".replace("%", "%%"),
        )


def _range(metadata: Mapping[str, Any]) -> str:
    """What numbers a setting takes; nothing of one that is not a number."""
    if "minimum" not in metadata:
        return ""
    low, high = metadata["minimum"], metadata["limit"]
    return f" {low:g} or more." if high is None else f" {low:g} to {high:.10g}."


def settings_from(options: argparse.Namespace, pipe: DiffV2IRPipeline) -> GenerationSettings:
    """The bundle's settings, changed by `--preset` and then by the single flags.

    Raises:
        CommandError: a value out of its range, or a style that the bundle does not have.
    """
    try:
        settings = pipe.default_settings
        if options.preset:
            settings = settings.with_preset(options.preset)
        settings = settings.replace(**given_settings(options))
    except ValueError as error:
        raise CommandError(error) from error
    if settings.style not in pipe.styles:
        raise CommandError(f"style {settings.style!r} is not in this bundle, which has {', '.join(pipe.styles)}")
    return settings


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The single flags that were given, without `--preset`."""
    names = [field.name for field in dataclasses.fields(GenerationSettings)]
    return {name: value for name in names if (value := getattr(options, name)) is not None}
