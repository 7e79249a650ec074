"""Page: one HTML file that needs nothing else: no network, no scripts, pictures inside.

It reads well on paper, in the dark and on narrow screens. Data come in as plain text; everything is escaped, so that
a case or class name can't become markup.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from jinja2 import Environment, StrictUndefined

from medsegdiff_cli import atomic

Alignment = Literal["left", "right", "center"]

_PACKAGE, _TEMPLATE = "medsegdiff_cli.reporting", "page.html.jinja"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UNDEFINED = "–"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of finished text.

    Attributes:
        caption: stands above; says what the numbers are, their unit and aggregation.
        headers: one a column.
        rows: each as long as `headers`; the first cell is the row's header.
        alignments: one a column; None puts the first column left and the others right.
    """

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    alignments: tuple[Alignment, ...] | None = None

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.headers)]
        if wrong or (self.alignments is not None and len(self.alignments) != len(self.headers)):
            raise ValueError(f"rows and alignments need {len(self.headers)} entries: {wrong or self.alignments}")

    @property
    def columns(self) -> tuple[Alignment, ...]:
        """The alignment of each column."""
        if self.alignments is not None:
            return self.alignments
        return tuple("left" if index == 0 else "right" for index in range(len(self.headers)))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture.

    Attributes:
        png: the file's bytes.
        alt: what a reader who can't see it must know; never empty.
        is_wide: takes a row of its own.
    """

    png: bytes
    caption: str
    alt: str
    is_wide: bool = False

    def __post_init__(self) -> None:
        if not self.png.startswith(_PNG_SIGNATURE):
            raise ValueError(f"the figure '{self.caption}' is no PNG")
        if not self.alt.strip():
            raise ValueError(f"the figure '{self.caption}' needs an alternative text")

    @property
    def source(self) -> str:
        """The picture as a data: URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True, kw_only=True)
class Section:
    """Paragraphs, then tables, then figures below one heading."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """The whole document.

    Attributes:
        notice: a sentence that must not be missed, in a frame below the title; empty for none.
        paragraphs: below the title, before the first section.
        provenance: name and value of what the page was made from and with (version, seed, digests, command).
        language: BCP 47 tag of the text.
    """

    title: str
    sections: tuple[Section, ...]
    notice: str = ""
    paragraphs: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    language: str = "en"


def write_page(page: Page, path: Path) -> Path:
    """Write the page atomically and return `path`; the same page gives the same bytes."""
    atomic.write_text(path, render(page))
    return path


def render(page: Page) -> str:
    """Return the page as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files(_PACKAGE).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(page=page)


def with_interval(value: float, interval: tuple[float, float], n: int | None = None, *, decimals: int = 3) -> str:
    """Return "0.93 [0.91, 0.95], n 20"; what is not a number is left out, a value that is none becomes a dash."""
    words = _UNDEFINED if math.isnan(value) else f"{value:.{decimals}f}"
    if not any(map(math.isnan, (value, *interval))):
        words += f" [{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]"
    return words if n is None else f"{words}, n {n}"


def seconds_in_words(seconds: float) -> str:
    """Return "0.4 s", "12 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def joined(words: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
