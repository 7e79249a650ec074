"""Inflate gzip and zlib streams with proof that they are whole.

A stream is whole when its end marker, checksum and length are there, nothing follows it, and it holds exactly
the number of bytes that the image header announces. DEFLATE cannot expand more than 1032-fold (zlib's
technical notes), so an absurd header is recognised before memory is taken. Empty images do reach that limit; what
is both that dense and larger than `_LARGEST_DENSE_BYTES` is refused as a bomb.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

from medsegdiff_cli.errors import InputDataError

GZIP_MAGIC = b"\x1f\x8b"
GZIP_WINDOW_BITS, ZLIB_WINDOW_BITS = 31, 15
_LARGEST_EXPANSION = 1032
_DENSE_EXPANSION, _LARGEST_DENSE_BYTES = 500, 3 << 29
_BYTES_PER_BLOCK = 512
_FEED_BYTES = 1 << 18
_OUTPUT_BYTES = 1 << 22


def damaged(what: str, path: Path) -> InputDataError:
    """Return the error for a file whose content is not what its header promises."""
    return InputDataError(what, where=str(path), fix="copy or export the file again from its source")


def refuse_bomb(expanded_bytes: int, stored_bytes: int, path: Path) -> None:
    """Refuse an image that would take gigabytes of memory for next to nothing in the file.

    Raises:
        InputDataError: it grows more than 500-fold, beyond 1.5 GiB.
    """
    if expanded_bytes > _LARGEST_DENSE_BYTES and expanded_bytes > _DENSE_EXPANSION * stored_bytes:
        raise InputDataError(
            f"{stored_bytes} stored bytes would become {expanded_bytes}: more than {_DENSE_EXPANSION}-fold",
            where=str(path),
            fix="check where the file comes from; an image that is really that empty can be stored uncompressed",
        )


def refuse_holes(path: Path) -> None:
    """Refuse a file of gigabytes that takes next to no room on the disk: its holes would be read as zeros.

    Raises:
        InputDataError: more than 500 bytes are claimed for each that is there, and more than 1.5 GiB.
    """
    status = path.stat()
    blocks = getattr(status, "st_blocks", None)
    if blocks is not None:
        refuse_bomb(status.st_size, blocks * _BYTES_PER_BLOCK, path)


def read_stored(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        InputDataError: see `refuse_holes`.
    """
    refuse_holes(path)
    return path.read_bytes()


def inflate_start(compressed: bytes, n_bytes: int, path: Path) -> bytes:
    """Return up to the first `n_bytes` of a gzip stream of which `compressed` is the beginning; proves nothing.

    Raises:
        InputDataError: the beginning is no gzip stream.
    """
    try:
        return zlib.decompressobj(GZIP_WINDOW_BITS).decompress(compressed, n_bytes)
    except zlib.error as error:
        raise damaged(f"the gzip stream is damaged ({error})", path) from error


def inflate_whole(compressed: bytes | memoryview, expected_bytes: int, path: Path, window_bits: int) -> bytearray:
    """Return the content of a stream that must be whole and exactly `expected_bytes` long.

    Several gzip members in a row (as bgzip writes them) count as one stream.

    Raises:
        InputDataError: truncated, damaged, shorter or longer than expected, or followed by other bytes.
    """
    if expected_bytes > _LARGEST_EXPANSION * (len(compressed) + 1):
        raise damaged(
            f"the header announces {expected_bytes} bytes, more than {len(compressed)} compressed bytes can hold", path
        )
    refuse_bomb(expected_bytes, len(compressed), path)
    content = bytearray(expected_bytes)
    end = 0
    try:
        for part in _inflated_parts(memoryview(compressed), path, window_bits):
            if end + len(part) > expected_bytes:
                raise damaged(f"the file holds more than the {expected_bytes} bytes that its header announces", path)
            content[end : end + len(part)] = part
            end += len(part)
    except zlib.error as error:
        raise damaged(f"the compressed stream is damaged ({error})", path) from error
    if end < expected_bytes:
        raise damaged(f"the file holds {end} bytes where its header announces {expected_bytes}", path)
    return content


def _inflated_parts(compressed: memoryview, path: Path, window_bits: int) -> Iterator[bytes]:
    """Yield the inflated bytes in small parts; zlib checks CRC and length itself when the end comes."""
    inflater = zlib.decompressobj(window_bits)
    position = 0
    while position < len(compressed):
        pending: bytes | memoryview = compressed[position : position + _FEED_BYTES]
        position += len(pending)
        while len(pending) and not inflater.eof:
            yield inflater.decompress(pending, _OUTPUT_BYTES)
            pending = inflater.unconsumed_tail
        while not inflater.eof and (part := inflater.decompress(b"", _OUTPUT_BYTES)):
            yield part
        if inflater.eof:
            position -= len(inflater.unused_data)
            if position < len(compressed):
                if window_bits != GZIP_WINDOW_BITS or bytes(compressed[position : position + 2]) != GZIP_MAGIC:
                    raise damaged(f"{len(compressed) - position} bytes follow the end of the compressed stream", path)
                inflater = zlib.decompressobj(window_bits)
    if not inflater.eof:
        raise damaged("the compressed stream ends too early (truncated file)", path)
