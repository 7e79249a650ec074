"""Cells of the tables that people open in spreadsheet programs.

Such programs run a cell that begins like a formula (`=cmd|...`), and names of cases come from files of strangers. A
text of that kind is written behind an apostrophe, which makes it plain text there; reading takes the apostrophe away.
Numbers stay numbers.
"""

from typing import Any

# An apostrophe is among them, so that every name comes back as it was.
_STARTERS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def cell(value: Any) -> Any:
    """Return what to write: undefined as nothing, truth as 1 and 0, text that no program runs, numbers unchanged."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_STARTERS) else value


def text_of(written: str) -> str:
    """Return the text behind a cell that `cell` or a spreadsheet program wrote."""
    return written[1:] if written.startswith("'") and written[1:].startswith(_STARTERS) else written
