"""The page: one file that needs nothing else; the standard library's parser says what a browser would see."""

import base64
import math
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image as Pil

from medsegdiff_cli.reporting.page import (
    Figure,
    Page,
    Section,
    Table,
    joined,
    render,
    seconds_in_words,
    with_interval,
    write_page,
)

VOID = {"meta", "img", "link", "br", "hr"}
NASTY = "<script>alert('x')</script> & \"quoted\""


class Seen(HTMLParser):
    """Collects elements, attributes and text, and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for found, attributes in self.found if found == tag]

    def text_in(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]


def png(colour: tuple[int, int, int] = (10, 20, 30)) -> bytes:
    stream = BytesIO()
    Pil.new("RGB", (3, 2), colour).save(stream, format="PNG")
    return stream.getvalue()


def example() -> Page:
    table = Table(
        caption="Dice",
        headers=("domain", "supervised", "remark"),
        rows=(("same", with_interval(0.93, (0.91, 0.95), 20, decimals=2), "fine"), ("other", "0.5", NASTY)),
        alignments=("left", "right", "center"),
    )
    figures = (Figure(png=png(), caption="A case", alt=NASTY), Figure(png=png(), caption="B", alt="b", is_wide=True))
    section = Section(heading="Scores", paragraphs=("All of them.",), tables=(table,), figures=figures)
    return Page(title=NASTY, notice="Phantoms", sections=(section,), provenance=(("seed", "3"), ("command", NASTY)))


@pytest.mark.fault("F93")
def test_every_text_arrives_and_none_becomes_markup() -> None:
    seen = Seen(render(example()))

    assert seen.text_in("h1") == seen.text_in("title") == [NASTY]
    assert seen.text_in("td") == ["0.93 [0.91, 0.95], n 20", "fine", "0.5", NASTY]
    assert seen.text_in("th") == ["domain", "supervised", "remark", "same", "other"]
    assert seen.text_in("dd") == ["3", NASTY]
    assert seen.text_in("figcaption") == ["A case", "B"]
    assert seen.attributes("script") == []
    assert seen.attributes("img")[0]["alt"] == NASTY


def test_nothing_is_fetched() -> None:
    html = render(example())
    seen = Seen(html)

    assert [image["src"].split(",")[0] for image in seen.attributes("img")] == ["data:image/png;base64"] * 2
    assert seen.attributes("link") == seen.attributes("iframe") == []
    assert not any(name in attributes for _, attributes in seen.found for name in ("href", "srcset", "onclick"))
    assert "://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in seen.attributes("meta")[3]["content"]


def test_the_embedded_picture_is_the_picture() -> None:
    source = Seen(render(example())).attributes("img")[0]["src"]

    assert base64.b64decode(source.partition(",")[2]) == png()


def test_columns_are_aligned_as_asked_or_numbers_to_the_right() -> None:
    asked = Seen(render(example()))
    assert [cell["class"] for cell in asked.attributes("td")] == ["right", "center"] * 2

    table = Table(caption="c", headers=("a", "b"), rows=(("x", "1"),))
    default = Seen(render(Page(title="t", sections=(Section(heading="h", tables=(table,)),))))
    assert [cell["class"] for cell in default.attributes("th")] == ["left", "right", "left"]
    assert [cell["scope"] for cell in default.attributes("th")] == ["col", "col", "row"]


def test_a_reader_on_paper_in_the_dark_and_on_a_telephone_is_thought_of() -> None:
    html = render(example())

    assert "@media print" in html
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert '<html lang="en">' in html


def test_the_file_is_written_whole_and_always_the_same(tmp_path: Path) -> None:
    path = write_page(example(), tmp_path / "page.html")

    assert path.read_text(encoding="utf-8") == render(example())
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_what_would_make_a_broken_page_is_refused() -> None:
    with pytest.raises(ValueError, match="2 entries"):
        Table(caption="c", headers=("a", "b"), rows=(("x",),))
    with pytest.raises(ValueError, match="2 entries"):
        Table(caption="c", headers=("a", "b"), rows=(), alignments=("left",))
    with pytest.raises(ValueError, match="no PNG"):
        Figure(png=b"GIF89a", caption="c", alt="a")
    with pytest.raises(ValueError, match="alternative text"):
        Figure(png=png(), caption="c", alt=" ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0.93, (0.91, 0.95), 20), "0.930 [0.910, 0.950], n 20"),
        ((0.93, (0.91, 0.95)), "0.930 [0.910, 0.950]"),
        ((0.93, (math.nan, math.nan), 1), "0.930, n 1"),
        ((math.nan, (math.nan, math.nan), 0), "–, n 0"),
    ],
)
def test_intervals_in_words(arguments, expected: str) -> None:
    assert with_interval(*arguments) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.44, "0.4 s"), (12.4, "12 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_seconds_in_words(seconds: float, expected: str) -> None:
    assert seconds_in_words(seconds) == expected


def test_lists_in_words() -> None:
    assert [joined(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
