"""Prove that a file holds what its header promises, before SimpleITK decodes it.

SimpleITK returns zeros, or the rest of a buffer, for the missing part of a JPEG, BMP or TIFF, and takes the memory
that an absurd header asks for. Sources: the MetaImage and NRRD format descriptions.
"""

import re
from pathlib import Path

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.inflating import GZIP_WINDOW_BITS, damaged, inflate_whole, read_stored
from medsegdiff_cli.imaging.photo_checks import StoredFacts, check_bmp, check_jpeg, check_png
from medsegdiff_cli.imaging.tiff_checks import check_tiff

_ZLIB_OR_GZIP_WINDOW_BITS = 47
_LONGEST_HEADER_BYTES = 1 << 20
_META_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT", "MET_LONG", "MET_ULONG"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}


def check_file(path: Path, ending: str, *, header_only: bool = False) -> StoredFacts:
    """Return what the file stores, once it is proved whole.

    Args:
        ending: as `reading.ending_of` gives it; any format but NIfTI.
        header_only: leave out the proof, gather the facts only.

    Raises:
        InputDataError: truncated or damaged, or a header that announces more than the file can hold.
    """
    if ending in (".tif", ".tiff"):
        return check_tiff(path)
    if header_only:
        return StoredFacts()
    check = {
        ".mha": _check_meta_image,
        ".mhd": _check_meta_image,
        ".nrrd": _check_nrrd,
        ".png": check_png,
        ".bmp": check_bmp,
    }.get(ending, check_jpeg)
    return check(path)


def _check_meta_image(path: Path) -> StoredFacts:
    stored = read_stored(path)
    marker = re.search(rb"^ElementDataFile[ \t]*=[ \t]*([^\r\n]*)\r?\n?", stored[:_LONGEST_HEADER_BYTES], re.MULTILINE)
    if marker is None:
        raise damaged("not a MetaImage file, or its header is cut off (no ElementDataFile)", path)
    lines = stored[: marker.start()].decode("latin-1").splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    data_file = marker.group(1).decode("latin-1").strip()
    if data_file == "LOCAL":
        voxels = memoryview(stored)[marker.end() :]
    elif not _is_plain_name(data_file):
        fix = "convert to one .mha file"
        raise InputDataError(f"voxels in {data_file!r} instead of one file beside it", where=str(path), fix=fix)
    else:
        voxels = memoryview(read_stored(path.parent / data_file))
    try:
        n_values = _product(fields["DimSize"].split()) * int(fields.get("ElementNumberOfChannels", "1"))
        n_bytes = n_values * _META_BYTES[fields["ElementType"]]
        skipped = int(fields.get("HeaderSize", "0"))
    except (KeyError, ValueError) as error:
        raise damaged(f"size or voxel type of the MetaImage header is wrong ({error})", path) from error
    if fields.get("BinaryData", "True").lower() == "false":
        _demand(len(bytes(voxels).split()), n_values, path)
    elif fields.get("CompressedData", "False").lower() == "true":
        inflate_whole(voxels, n_bytes, path, _ZLIB_OR_GZIP_WINDOW_BITS)
    else:
        # HeaderSize -1: the voxels are the last bytes of the file.
        _demand(min(len(voxels), n_bytes) if skipped == -1 else len(voxels) - skipped, n_bytes, path)
    return StoredFacts()


def _check_nrrd(path: Path) -> StoredFacts:
    stored = read_stored(path)
    end = re.search(rb"\r?\n\r?\n", stored[:_LONGEST_HEADER_BYTES])
    if not stored.startswith(b"NRRD000") or end is None:
        raise damaged("not a NRRD file, or its header is cut off", path)
    lines = stored[: end.start()].decode("latin-1").splitlines()[1:]
    pairs = (line.partition(": ") for line in lines if not line.startswith("#") and ":=" not in line)
    fields = {key.strip().lower().replace(" ", ""): value.strip() for key, _, value in pairs}
    if "datafile" in fields:
        raise InputDataError("voxels in a separate file", where=str(path), fix="convert to one .nrrd or .mha file")
    try:
        n_values = _product(fields["sizes"].split())
        n_bytes = n_values * _NRRD_BYTES[fields["type"].lower()]
        skipped = int(fields.get("byteskip", "0"))
        encoding = fields["encoding"].lower()
    except (KeyError, ValueError) as error:
        raise damaged(f"size, type or encoding of the NRRD header is wrong ({error})", path) from error
    voxels = memoryview(stored)[end.end() :]
    if int(fields.get("lineskip", "0") or 0):
        raise InputDataError("NRRD with 'line skip'", where=str(path), fix="convert to a plain .nrrd or .mha file")
    if encoding == "raw":
        _demand(min(len(voxels), n_bytes) if skipped == -1 else len(voxels) - skipped, n_bytes, path)
    elif encoding in ("gz", "gzip"):
        inflate_whole(voxels, n_bytes + max(skipped, 0), path, GZIP_WINDOW_BITS)
    elif encoding in ("txt", "text", "ascii"):
        _demand(len(bytes(voxels).split()), n_values, path)
    else:
        raise InputDataError(f"NRRD encoding '{encoding}'", where=str(path), fix="use encoding raw or gzip")
    return StoredFacts()


def _is_plain_name(name: str) -> bool:
    """Say whether a header names one file beside it: no list, pattern or path."""
    return name.isprintable() and name not in ("", "LIST") and "%" not in name and Path(name).name == name


def _product(words: list[str]) -> int:
    product = 1
    for word in words:
        if int(word) < 1:
            raise ValueError(f"size {word}")
        product *= int(word)
    return product


def _demand(found: int, expected: int, path: Path) -> None:
    if found != expected:
        raise damaged(f"the file holds {found} bytes or values where its header announces {expected}", path)
