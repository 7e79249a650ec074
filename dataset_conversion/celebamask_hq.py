"""CelebAMask-HQ: 30 000 portraits, and for each of 18 classes a mask of its own where the class occurs.

Source: C.-H. Lee et al., MaskGAN: Towards Diverse and Interactive Facial Image Manipulation, CVPR (2020). A label map
is painted in the order of the release's own preparation, later classes over earlier ones, so that skin lies lowest;
the values are 1..18 in that order. LEDM's CelebA-19 has the same classes in alphabetical order (cloth is 1, ear_r 2,
..., u_lip 18), so that its values and these must not be mixed.

Portraits have 1024 x 1024 pixels, masks 512 x 512, and a dataset folder wants one grid. The portraits are shrunk:
each pixel is the mean of the 2 x 2 that it covers. So the labels stay those that were drawn, the folder takes a quarter
of the space, and what a plan shrinks further (to 256 x 256 in the literature) was smoothed before.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import ending_of, read_geometry, read_image, read_label
from medsegdiff_cli.imaging.writing import write_image

from .case_source import CaseSource, bare_name, visible_files
from .contract import ConversionReport, FormatInfo, Options
from .file_ending import PHOTO_ENDINGS
from .label_table import table_of_map
from .phantom import phantom
from .test_set import set_aside
from .writing_case import Readers
from .writing_dataset import Declared, write_dataset

_IMAGES, _MASKS = "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"
_PAINT_ORDER = (
    *("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear"),
    *("mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
)
_VALUE_OF = {name: value for value, name in enumerate(_PAINT_ORDER, start=1)}
_PUBLISHED_FACTOR = 2
_PER_FOLDER = 2000

FORMAT = FormatInfo(
    name="celebamask-hq",
    title="CelebAMask-HQ portraits (30 000, 18 classes)",
    reads=(
        f"A folder with {_IMAGES}/0.jpg and {_MASKS}/0/00000_skin.png, a mask for each class that occurs. Portraits "
        "are shrunk to the masks' grid by averaging 2 x 2 pixels; masks are painted in the release's order, skin "
        "lowest, cloth highest. All portraits are for training unless a test set is asked for."
    ),
    example="msd convert celebamask-hq CelebAMask-HQ --dataset 37 --name CelebAMask",
    options=frozenset({"test_list", "test_count", "seed"}),
    licence="non-commercial research only",
    citation=(
        "C.-H. Lee, Z. Liu, L. Wu, P. Luo, MaskGAN: Towards Diverse and Interactive Facial Image Manipulation, CVPR "
        "(2020)"
    ),
)


def convert(source: Path, destination: Path, options: Options) -> ConversionReport:
    """Write the dataset folder.

    Raises:
        InputDataError: no portrait, a mask without one or of no known class, or a case that cannot be used.
        UsageError: a test set that cannot be made.
    """
    images = _images(source / _IMAGES)
    masks = _masks(source / _MASKS)
    if orphans := sorted(masks.keys() - images.keys()):
        where = str(next(iter(masks[orphans[0]].values())))
        raise InputDataError("a mask has no portrait", where=where, fix="add the portrait, or remove its masks")
    sources, notes = set_aside([_case(number, images[number], masks) for number in sorted(images)], options)
    factor = _factor(sources)
    shrunk = () if factor == 1 else (f"portraits shrunk to the masks' grid: the mean of {factor} x {factor} pixels",)
    declared = Declared(
        table=table_of_map({value: name for name, value in _VALUE_OF.items()}, None),
        licence=FORMAT.licence,
        citation=FORMAT.citation,
        notes=(*shrunk, *notes),
        readers=Readers(image=partial(_read_shrunk, factor=factor), label=_read_part),
    )
    return write_dataset(FORMAT.name, sources, declared, destination, options)


def make_fake_source(folder: Path) -> Options:
    """Write four portraits twice as large as their masks; skin lies under nose and hair, the last has no mask."""
    grid, fine = (Geometry.plain(shape, has_physical_spacing=False) for shape in ((24, 20), (48, 40)))
    for index in range(4):
        image, boxes = phantom(fine.shape, (1, 2), seed=index)
        colours = np.concatenate([image, 255 - image, image])
        write_image(folder / _IMAGES / f"{index}.png", Image(array=colours, geometry=fine))
        small = boxes[:, ::2, ::2]
        parts = {"skin": small >= 0, "nose": small == 1, "hair": small == 2} if index < 3 else {}
        for name, part in parts.items():
            mask = np.repeat(np.where(part, 255, 0).astype(np.uint8), 3, axis=0)
            write_image(folder / _MASKS / "0" / f"{index:05d}_{name}.png", Image(array=mask, geometry=grid))
    return Options(test_count=1)


def _images(folder: Path) -> dict[int, Path]:
    images: dict[int, Path] = {}
    for path in visible_files(folder):
        if ending_of(path) not in PHOTO_ENDINGS:
            continue
        number = _number(bare_name(path), path)
        if number in images:
            where = f"{images[number]} and {path}"
            raise InputDataError(f"two portraits have the number {number}", where=where, fix="remove one of them")
        images[number] = path
    if not images:
        fix = f"give the folder that holds {_IMAGES} and {_MASKS}"
        raise InputDataError("no portraits", where=str(folder), fix=fix)
    return images


def _masks(folder: Path) -> dict[int, dict[str, Path]]:
    """Return number to class to file, for the files of all sub-folders."""
    masks: dict[int, dict[str, Path]] = {}
    for path in visible_files(folder, recursive=True):
        text, _, name = bare_name(path).partition("_")
        number = _number(text, path)
        if name not in _VALUE_OF:
            fix = f"the classes are {', '.join(_PAINT_ORDER)}"
            raise InputDataError(f"'{name}' is no class of CelebAMask-HQ", where=str(path), fix=fix)
        if path.parent.name != str(number // _PER_FOLDER):
            fix = f"masks of {number} belong to {folder / str(number // _PER_FOLDER)}"
            raise InputDataError("a mask lies in the wrong folder", where=str(path), fix=fix)
        masks.setdefault(number, {})[name] = path
    return masks


def _number(text: str, path: Path) -> int:
    if not (text.isascii() and text.isdigit()):
        fix = "portraits are called 0.jpg, masks 00000_skin.png"
        raise InputDataError(f"'{path.name}' does not begin with a number", where=str(path), fix=fix)
    return int(text)


def _case(number: int, image: Path, masks: Mapping[int, Mapping[str, Path]]) -> CaseSource:
    # Higher values win where the parts of a label overlap: that is the order of painting.
    parts = tuple(path for _, path in sorted(masks.get(number, {}).items(), key=lambda part: _VALUE_OF[part[0]]))
    return CaseSource(
        case=f"{number:05d}",
        part="Tr" if parts else "Un",
        images=(image,),
        label=next(iter(parts), None),
        more_label=parts[1:],
    )


def _factor(sources: list[CaseSource]) -> int:
    """Return how many pixels of a portrait lie along one of its masks' pixels; the first case speaks for all.

    Raises:
        InputDataError: that is no whole number, or differs between the axes.
    """
    for source in sources:
        if source.label is not None:
            fine, coarse = read_geometry(source.images[0]).shape, read_geometry(source.label).shape
            factors = {f // c if f % c == 0 else 0 for f, c in zip(fine, coarse, strict=True)}
            if len(factors) == 1 and 0 not in factors:
                return factors.pop()
            what = f"a portrait of {fine} pixels is no whole multiple of its mask's {coarse}"
            raise InputDataError(what, where=str(source.images[0]), fix="take the published files: 1024 and 512")
    return _PUBLISHED_FACTOR


def _read_shrunk(path: Path, *, factor: int) -> Image:
    """Read (channel, y, x) and take the mean of every `factor` x `factor` pixels, halves rounded up."""
    image = read_image(path)
    shape = image.geometry.shape
    if any(size % factor for size in shape):
        what = f"{shape} pixels cannot be shrunk by {factor}"
        raise InputDataError(what, where=str(path), fix="take the published files")
    n = factor * factor
    total: np.ndarray = np.full((len(image.array), *(size // factor for size in shape)), n // 2, np.uint32)
    for y, x in np.ndindex(factor, factor):
        total += image.array[:, y::factor, x::factor]
    geometry = Geometry.plain(total.shape[1:], has_physical_spacing=False)
    return Image(array=(total // n).astype(image.array.dtype), geometry=geometry)


def _read_part(path: Path) -> Image:
    """Read one class's mask, anything above 0, as that class's value."""
    mask = read_label(path)
    value = _VALUE_OF[bare_name(path).partition("_")[2]]
    return Image(array=np.where(mask.array > 0, value, 0).astype(np.uint8), geometry=mask.geometry)
