"""Adapters that read public data sets as their authors publish them; `docs/data.md` has the table."""

from diffv2ir.data.sources.aerial import AERIAL
from diffv2ir.data.sources.base import Found, Source
from diffv2ir.data.sources.ground import GROUND
from diffv2ir.data.sources.infrared import INFRARED

SOURCES: dict[str, Source] = {source.key: source for source in (*GROUND, *AERIAL, *INFRARED)}

__all__ = ["SOURCES", "Found", "Source", "table"]


def table() -> str:
    """The adapters as a Markdown table."""
    rows = ["| `--source` | what | band | terms | ask for it at | layout | what is known |", "| --- " * 7 + "|"]
    for source in SOURCES.values():
        cells = (f"`{source.key}`", f"**{source.title}**: {source.what}", source.band, source.terms, source.where,
                 source.layout, source.known)  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)
