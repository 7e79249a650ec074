"""Prove that a PNG, JPEG or BMP file is whole (ISO 15948, ITU T.81, the Windows bitmap headers)."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.inflating import ZLIB_WINDOW_BITS, damaged, inflate_whole, read_stored, refuse_bomb

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES_PER_PNG_COLOUR = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_GREY, _PALETTE, _GREY_WITH_ALPHA = 0, 3, 4
_COLOUR_TYPE_PLACE = 25
# First row and column and the steps of the seven passes of an interlaced PNG.
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_JPEG_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
_JPEG_SCAN, _JPEG_END = 0xDA, b"\xff\xd9"
# A Huffman coded block of 8 x 8 pixels takes one bit at least.
_MOST_PIXELS_PER_JPEG_BYTE = 512


@dataclass(frozen=True, kw_only=True)
class StoredFacts:
    """What SimpleITK does not tell of a file.

    Attributes:
        is_grey: one grey channel is stored, even where SimpleITK hands out colours.
        has_physical_spacing: the spacing is a distance in mm.
    """

    is_grey: bool = False
    has_physical_spacing: bool = True


def check_png(path: Path) -> StoredFacts:
    """Check every chunk's CRC, the end chunk and the length of the pixel stream."""
    stored = read_stored(path)
    chunks = list(png_chunks(stored, path))
    head = chunks[0][1]
    if chunks[0][0] != b"IHDR" or len(head) != 13:
        raise damaged("the PNG file does not begin with its header", path)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", head)
    if not (width and height and colour in _SAMPLES_PER_PNG_COLOUR):
        raise damaged(f"absurd PNG header: {width} x {height}, colour type {colour}", path)
    if colour == _GREY_WITH_ALPHA:
        raise InputDataError("grey PNG with an alpha channel", where=str(path), fix="save it without transparency")
    pixel_bits = depth * _SAMPLES_PER_PNG_COLOUR[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    n_bytes = 0
    for first_row, first_column, row_step, column_step in passes:
        rows = max(0, -(-(height - first_row) // row_step))
        columns = max(0, -(-(width - first_column) // column_step))
        n_bytes += rows * (1 + -(-columns * pixel_bits // 8)) if columns else 0
    inflate_whole(b"".join(data for kind, data in chunks if kind == b"IDAT"), n_bytes, path, ZLIB_WINDOW_BITS)
    return StoredFacts(has_physical_spacing=False)


def png_chunks(stored: bytes, path: Path) -> list[tuple[bytes, bytes]]:
    """Return (type, data) of every chunk up to the end chunk."""
    if not stored.startswith(_PNG_SIGNATURE):
        raise damaged(f"not a PNG file (it begins with {stored[:8]!r})", path)
    chunks: list[tuple[bytes, bytes]] = []
    position = len(_PNG_SIGNATURE)
    while not chunks or chunks[-1][0] != b"IEND":
        length = int.from_bytes(stored[position : position + 4], "big")
        body = stored[position + 4 : position + 8 + length]
        checksum = stored[position + 8 + length : position + 12 + length]
        if len(checksum) < 4:
            raise damaged("the PNG file ends too early (truncated file)", path)
        if zlib.crc32(body) != int.from_bytes(checksum, "big"):
            raise damaged(f"wrong checksum in PNG chunk {body[:4]!r}", path)
        chunks.append((body[:4], body[4:]))
        position += 12 + length
    return chunks


def has_palette(path: Path) -> bool:
    """Say whether a PNG file stores indices into a table of colours; proves nothing else."""
    with path.open("rb") as stream:
        return stream.read(_COLOUR_TYPE_PLACE + 1)[_COLOUR_TYPE_PLACE:] == bytes([_PALETTE])


def palette_indices_as_grey(stored: bytes, path: Path) -> tuple[bytes, int]:
    """Return a palette PNG turned into a grey one, and the factor by which decoders stretch its values.

    Decoders hand out the colours of a palette; in a label the index is what counts.
    """
    chunks = png_chunks(stored, path)
    depth = chunks[0][1][8]
    head = chunks[0][1][:9] + bytes([_GREY]) + chunks[0][1][10:]
    kept = [(b"IHDR", head), *(chunk for chunk in chunks if chunk[0] in (b"IDAT", b"IEND"))]
    parts = [
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in kept
    ]
    return _PNG_SIGNATURE + b"".join(parts), 255 // (2**depth - 1)


def check_jpeg(path: Path) -> StoredFacts:
    """Check the size and the end marker; damage inside the scan has no checksum and stays unseen."""
    stored = read_stored(path)
    if not stored.startswith(b"\xff\xd8"):
        raise damaged(f"not a JPEG file (it begins with {stored[:2]!r})", path)
    position, marker, has_frame = 2, 0, False
    while marker != _JPEG_SCAN:
        segment = stored[position : position + 10]
        if len(segment) < 10 or segment[0] != 0xFF:
            raise damaged("the JPEG file ends before its pixels (truncated or damaged)", path)
        marker = segment[1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", segment[5:9])
            has_frame = True
            if not 0 < height * width <= _MOST_PIXELS_PER_JPEG_BYTE * len(stored):
                raise damaged(f"absurd JPEG size {width} x {height} in {len(stored)} bytes", path)
            refuse_bomb(height * width * segment[9], len(stored), path)
        position += 2 + int.from_bytes(segment[2:4], "big")
    # Inside the coded pixels 0xff is never followed by 0xd9.
    if not has_frame or stored.find(_JPEG_END, position) < 0:
        raise damaged("the JPEG file has no end marker (truncated file)", path)
    return StoredFacts(has_physical_spacing=False)


def check_bmp(path: Path) -> StoredFacts:
    """Check that all rows are in the file."""
    stored = read_stored(path)
    if not stored.startswith(b"BM") or len(stored) < 54:
        raise damaged("not a BMP file, or its header is cut off", path)
    offset, header_bytes, width, height, _, bits, compression = struct.unpack("<IIiiHHI", stored[10:34])
    if header_bytes < 40 or width <= 0 or height == 0 or bits not in (8, 24, 32):
        what = f"absurd or unsupported BMP header: {width} x {height}, {bits} bits"
        raise InputDataError(what, where=str(path), fix="save it as PNG")
    if compression not in (0, 3):
        raise InputDataError("compressed BMP, which cannot be checked", where=str(path), fix="save it as PNG")
    expected = offset + -(-width * bits // 32) * 4 * abs(height)
    if len(stored) < expected:
        raise damaged(f"the file holds {len(stored)} bytes where its header announces {expected}", path)
    return StoredFacts(is_grey=bits <= 8, has_physical_spacing=False)
