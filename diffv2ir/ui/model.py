"""The one model of a server: known at once, loaded in the background, shared by all sessions."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffv2ir import bundle
from diffv2ir.settings import GENERAL_STYLE, GenerationSettings
from diffv2ir.vlum.prompt import HEAT_PHRASES

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline

logger = logging.getLogger(__name__)

# Of a model card's front matter.
_FIELD = re.compile(r"^(datasets|license|license_name): *(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class BundleFacts:
    """What the page shows before the weights are there.

    Attributes:
        trained_on: data sets named by the bundle's model card; "" if it names none.
        terms: the licence of the weights by that card, as "research only"; "" if it names none.
        phrases: words for hour and season, see `DiffV2IRPipeline`.
    """

    name: str
    defaults: GenerationSettings
    styles: tuple[str, ...]
    trained_on: str = ""
    terms: str = ""
    phrases: tuple[str, ...] = HEAT_PHRASES

    @classmethod
    def read(cls, folder: Path) -> BundleFacts:
        """From the bundle's index.

        Raises:
            BundleError: the folder is no complete bundle.
        """
        bundle.check(folder)
        index = json.loads((folder / bundle.INDEX).read_text(encoding="utf-8"))
        styles = dict.fromkeys([GENERAL_STYLE, *(index.get("styles") or [])])
        defaults = GenerationSettings.from_dict(index.get("defaults") or {})
        phrases = tuple(index.get("phrases", HEAT_PHRASES))
        return cls(index.get("name") or folder.name, defaults, tuple(styles), *_card(folder), phrases)

    @classmethod
    def of(cls, pipe: DiffV2IRPipeline) -> BundleFacts:
        config, card = pipe.config, _card(pipe.folder) if pipe.folder else ("", "")
        return cls(config.name, pipe.default_settings, tuple(pipe.styles), *card, tuple(config.phrases))

    def starting_with(self, style: str) -> BundleFacts:
        """The same with another default style.

        Raises:
            ValueError: the bundle does not have it.
        """
        if style not in self.styles:
            raise ValueError(f"style must be one of {', '.join(self.styles)}, got {style!r}")
        return dataclasses.replace(self, defaults=self.defaults.replace(style=style))


class ModelError(ValueError):
    """There is no model: it could not be loaded."""


class Model:
    """A pipeline that may still be loading.

    Args:
        facts: of the bundle. load: makes the pipeline; called once, in a thread of its own.
    """

    def __init__(self, facts: BundleFacts, load: Callable[[], DiffV2IRPipeline]):
        self.facts = facts
        self._load, self._ready = load, threading.Event()
        self._pipe: DiffV2IRPipeline | None = None
        self._failed = False
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="diffv2ir-load", daemon=True)

    @classmethod
    def ready(cls, pipe: DiffV2IRPipeline) -> Model:
        """A model that is there already."""
        model = cls(BundleFacts.of(pipe), lambda: pipe)
        model._work()
        return model

    def start(self) -> None:
        """Begin to load, if that has not begun."""
        with self._starting:
            if self._thread.ident is None and not self._ready.is_set():
                self._thread.start()

    @property
    def state(self) -> str:
        """ "loading", "ready" or "failed"."""
        if not self._ready.is_set():
            return "loading"
        return "failed" if self._failed else "ready"

    def get(self) -> DiffV2IRPipeline:
        """The pipeline; waits until it is there.

        Raises:
            ModelError: it could not be loaded.
        """
        self.start()
        self._ready.wait()
        if self._failed:
            raise ModelError("the model could not be loaded; the server's log says why")
        return self._pipe

    def _work(self) -> None:
        try:
            self._pipe = self._load()
        except BaseException:
            logger.exception("the model could not be loaded")
            self._failed = True
        finally:
            self._ready.set()


def _card(folder: Path) -> tuple[str, str]:
    """`datasets` of a model card's front matter as "a, b and c", and its licence in words; "" where it has none."""
    card = folder / "README.md"
    if not card.is_file():
        return "", ""
    text = card.read_text(encoding="utf-8")
    found = {key: value.strip(" '\"") for key, value in _FIELD.findall(text)}
    names = [name.strip(" '\"") for name in found.get("datasets", "").strip("[]").split(",") if name.strip()]
    terms = found.get("license_name") or found.get("license", "")
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names), terms.replace("-", " ")
