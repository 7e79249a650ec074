"""Prove that a TIFF or BigTIFF file is whole: every page, its tables and its strips lie in the file (TIFF 6.0)."""

import mmap
import struct
from pathlib import Path

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.inflating import damaged, refuse_bomb, refuse_holes
from medsegdiff_cli.imaging.photo_checks import StoredFacts

_FORMATS = {
    1: "B",
    2: "B",
    3: "H",
    4: "I",
    5: "II",
    6: "b",
    7: "B",
    8: "h",
    9: "i",
    10: "ii",
    11: "f",
    12: "d",
    13: "I",
}
_BIG_FORMATS = {16: "Q", 17: "q", 18: "Q"}
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 254, 256, 257, 258, 259, 262, 277
_X_RESOLUTION, _RESOLUTION_UNIT = 282, 296
_PARTS = ((273, 279), (324, 325))
_WANTED = {_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _X_RESOLUTION, _RESOLUTION_UNIT}
_WANTED |= {tag for pair in _PARTS for tag in pair}
_UNCOMPRESSED, _PALETTE, _REDUCED = 1, 3, 1
_MOST_PAGES = 1 << 16
# DEFLATE reaches 1032-fold and LZW about 1400-fold; fax coding of blank pages is not an image of the field.
_LARGEST_EXPANSION = 2048
_INCH, _CENTIMETRE = 2, 3
# What programs write when nobody measured anything; 25.4 per inch is ITK's way to write 1 mm.
_PRINTING_DPI = (1.0, 25.4, 72.0, 75.0, 96.0, 100.0, 150.0, 200.0, 300.0, 600.0, 1200.0)


class _Cut(Exception):
    """A place behind the end of the file."""


def check_tiff(path: Path) -> StoredFacts:
    """Walk through all pages.

    Raises:
        InputDataError: a page, a table or a strip of pixels lies behind the end of the file.
    """
    refuse_holes(path)
    with path.open("rb") as stream:
        if stream.seek(0, 2) < 8:
            raise damaged("not a TIFF file, or its header is cut off", path)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as stored:
            try:
                pages = _pages(stored, path)
                n_bytes = sum(_check_page(page, len(stored), path) for page in pages)
                refuse_bomb(n_bytes, len(stored), path)
            except _Cut as error:
                raise damaged("a table or strip lies behind the end of the TIFF file (truncated file)", path) from error
    first = pages[0]
    sizes = {(page[_HEIGHT][0], page[_WIDTH][0]) for page in pages if not page.get(_SUBFILE, (0,))[0] & _REDUCED}
    if len(sizes) > 1:
        fix = "keep one page, or split the pages into files"
        raise InputDataError(f"the TIFF file has pages of different size: {sorted(sizes)}", where=str(path), fix=fix)
    is_palette = first.get(_PHOTOMETRIC, (0,))[0] == _PALETTE
    return StoredFacts(
        is_grey=first.get(_SAMPLES, (1,))[0] == 1 and not is_palette,
        has_physical_spacing=len(pages) == 1 and _is_measured(first),
    )


def _pages(stored: mmap.mmap, path: Path) -> list[dict[int, tuple[int, ...]]]:
    """Return the wanted tags of every page."""
    order = {b"II": "<", b"MM": ">"}.get(stored[:2])
    version = struct.unpack(f"{order or '<'}H", stored[2:4])[0]
    if order is None or version not in (42, 43):
        raise damaged(f"not a TIFF file (it begins with {stored[:4]!r})", path)
    is_big = version == 43
    place = _unpack(stored, order + ("Q" if is_big else "I"), 8 if is_big else 4)[0]
    pages: list[dict[int, tuple[int, ...]]] = []
    seen: set[int] = set()
    while place:
        if place in seen or len(pages) >= _MOST_PAGES:
            raise damaged("the pages of the TIFF file run in a circle", path)
        seen.add(place)
        page, place = _page(stored, order, is_big, place)
        pages.append(page)
    if not pages:
        raise damaged("the TIFF file has no page", path)
    return pages


def _page(stored: mmap.mmap, order: str, is_big: bool, place: int) -> tuple[dict[int, tuple[int, ...]], int]:
    """Return the wanted tags of the page at `place` and the place of the next."""
    count_format, entry_bytes, place_format = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    n_entries = _unpack(stored, order + count_format, place)[0]
    start = place + struct.calcsize(order + count_format)
    if start + n_entries * entry_bytes > len(stored):
        raise _Cut
    formats = {**_FORMATS, **_BIG_FORMATS}
    page: dict[int, tuple[int, ...]] = {}
    for index in range(n_entries):
        entry = start + index * entry_bytes
        tag, kind, count = _unpack(stored, f"{order}HH{place_format}", entry)
        inline = entry + (12 if is_big else 8)
        element = formats.get(kind, "B")
        n_bytes = count * struct.calcsize(order + element)
        values = inline if n_bytes <= (8 if is_big else 4) else _unpack(stored, order + place_format, inline)[0]
        if values + n_bytes > len(stored):
            raise _Cut
        if tag in _WANTED:
            page[tag] = _unpack(stored, f"{order}{count * len(element)}{element[0]}", values)
    return page, _unpack(stored, order + place_format, start + n_entries * entry_bytes)[0]


def _check_page(page: dict[int, tuple[int, ...]], file_bytes: int, path: Path) -> int:
    """Return the bytes of the page's pixels once they are proved to be there."""
    if _WIDTH not in page or _HEIGHT not in page:
        raise damaged("a page of the TIFF file has no size", path)
    bits = sum(page.get(_BITS, (1,)))
    n_bytes = page[_HEIGHT][0] * -(-page[_WIDTH][0] * max(bits, page.get(_SAMPLES, (1,))[0]) // 8)
    for place_tag, length_tag in _PARTS:
        if place_tag in page:
            places, lengths = page[place_tag], page.get(length_tag, ())
            break
    else:
        raise damaged("a page of the TIFF file has no pixels", path)
    if len(places) != len(lengths) or any(a + b > file_bytes for a, b in zip(places, lengths, strict=True)):
        raise _Cut
    largest = sum(lengths) * (1 if page.get(_COMPRESSION, (1,))[0] == _UNCOMPRESSED else _LARGEST_EXPANSION)
    if n_bytes < 1 or n_bytes > largest:
        raise damaged(f"the page announces {n_bytes:.0f} bytes of pixels, its strips hold {sum(lengths):.0f}", path)
    return n_bytes


def _is_measured(page: dict[int, tuple[int, ...]]) -> bool:
    """Say whether the resolution is a measurement and no printing default."""
    unit, resolution = page.get(_RESOLUTION_UNIT, (_INCH,))[0], page.get(_X_RESOLUTION, (0, 1))
    if len(resolution) < 2 or not resolution[0] or not resolution[1]:
        return False
    per_unit = resolution[0] / resolution[1]
    is_default = any(abs(per_unit - dpi) < 1e-3 * dpi for dpi in _PRINTING_DPI)
    return unit == _CENTIMETRE or (unit == _INCH and not is_default)


def _unpack(stored: mmap.mmap, layout: str, place: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, stored, place)
    except struct.error as error:
        raise _Cut from error
