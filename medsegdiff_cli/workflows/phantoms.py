"""Phantoms as image files: sources for `msd convert folder`, test sets, and shifted copies of real images."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medsegdiff_cli import atomic
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import case_name_of, ending_of, read_image
from medsegdiff_cli.imaging.writing import write_image, write_label
from medsegdiff_cli.phantoms.appearance import shift_appearance
from medsegdiff_cli.phantoms.blobs import BLOB_SHAPE, BLOB_WINDOW, draw_blobs
from medsegdiff_cli.phantoms.chest import draw_chest
from medsegdiff_cli.phantoms.scanner import SCANNERS, acquire, find_scanner, to_uint8
from medsegdiff_cli.phantoms.volume import ORGAN_CLASSES, VOLUME_SHAPE, VOLUME_SPACING_MM, draw_organ, draw_volume

CLASSES = ORGAN_CLASSES
TEST_LIST = "tests.txt"
# Strong noise and shading reach beyond the tissue's range; a detector leaves room for them.
CHEST_WINDOW = (-0.25, 1.25)
# Parts never share a person, however many cases they have.
_FIRST_PERSON = {"train": 0, "test": 1_000_000, "unlabelled": 2_000_000}
_PERSONS_OF_A_SCANNER = 100_000


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """What phantoms look like.

    Attributes:
        shape: voxels of the first case, (z, y, x) or (y, x); the others differ by up to an eighth.
        spacing_mm: voxel edges of most cases; every third case is finer by a fifth along its first axis.
            None makes photographs without physical spacing.
        difficulty: 0 is clean; 1 has noise as strong as the organ's contrast to the body.
        seed: the same seed gives the same voxels, whatever the number of cases.
    """

    shape: tuple[int, ...] = (32, 40, 36)
    spacing_mm: tuple[float, ...] | None = (2.5, 1.25, 1.25)
    difficulty: float = 0.3
    seed: int = 0


@dataclass(frozen=True)
class Phantom:
    """Intensities (1, *spatial) uint8, and the label (*spatial) uint8."""

    image: Image
    label: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ChestCohort:
    """Which chests to write; the mappings go from a scanner's name to a number of cases.

    Attributes:
        train: with labels. Person i is the same on every scanner.
        unlabelled: other persons on each scanner.
        test: with labels, set aside. Person i is the same on every scanner, so that scores differ by the scanner alone.
        shape: pixels (y, x).
        seed: the same seed gives the same pixels, whatever the numbers of cases.
        first_train: person of the first training case, so that two cohorts can have different ones.
    """

    train: Mapping[str, int] = field(default_factory=lambda: {"A": 6})
    unlabelled: Mapping[str, int] = field(default_factory=dict)
    test: Mapping[str, int] = field(default_factory=dict)
    shape: tuple[int, int] = (64, 64)
    seed: int = 0
    first_train: int = 0


def make_phantom(index: int, settings: PhantomSettings) -> Phantom:
    """Return organ phantom number `index`, with the values of `CLASSES`."""
    random = np.random.default_rng([settings.seed, index])
    shape = tuple(int(n + random.integers(-(n // 8), n // 8 + 1)) if index else n for n in settings.shape)
    voxels, label = draw_organ(random, shape, settings.difficulty)
    return Phantom(Image(array=voxels[np.newaxis], geometry=_geometry(shape, index, settings)), label)


def write_phantoms(
    folder: Path, settings: PhantomSettings, *, labelled: int, unlabelled: int = 0, ending: str = ".nii.gz"
) -> Path:
    """Write `images/phantom_000.nii.gz ...` and, for the first `labelled` of them, `labels/phantom_000.nii.gz ...`.

    Args:
        folder: becomes a source for `msd convert folder`.
        ending: .png for photographs (2D without spacing).

    Returns:
        the folder.
    """
    for index in range(labelled + unlabelled):
        _write(folder, f"phantom_{index:03d}{ending}", make_phantom(index, settings), labelled=index < labelled)
    return folder


def write_volumes(folder: Path, n_cases: int, *, seed: int = 0, difficulty: float = 0.3) -> Path:
    """Write `images/volume_000.nii.gz ...` and `labels/...`: all (16, 32, 32) voxels of (3, 1.5, 1.5) mm.

    Returns:
        the folder.
    """
    geometry = Geometry.plain(VOLUME_SHAPE, VOLUME_SPACING_MM)
    for index in range(n_cases):
        voxels, label = draw_volume(index, seed, difficulty=difficulty)
        _write(folder, f"volume_{index:03d}.nii.gz", Phantom(Image(array=voxels[np.newaxis], geometry=geometry), label))
    return folder


def write_blobs(
    folder: Path,
    n_cases: int,
    *,
    noise: float = 0.5,
    seed: int = 0,
    first: int = 0,
    shape: tuple[int, int] = BLOB_SHAPE,
) -> Path:
    """Write `images/blobs-0000.png ...` and `labels/...`: photographs without spacing.

    Args:
        first: number of the first case, so that two folders can hold different ones.
        shape: pixels (y, x).

    Returns:
        the folder.
    """
    geometry = Geometry.plain(shape, has_physical_spacing=False)
    for index in range(first, first + n_cases):
        image, label = draw_blobs(index, seed, shape, noise)
        pixels = to_uint8(image, BLOB_WINDOW)[np.newaxis]
        _write(folder, f"blobs-{index:04d}.png", Phantom(Image(array=pixels, geometry=geometry), label))
    return folder


def make_chest(person: int, scanner: str, *, seed: int = 0, shape: tuple[int, int] = (64, 64)) -> Phantom:
    """Return a person's chest as a scanner shows it: a photograph (1, y, x) uint8 and its label, 1 is lung.

    Raises:
        UsageError: there is no such scanner.
    """
    machine = find_scanner(scanner)
    tissue, label = draw_chest(person, seed, shape)
    noise = np.random.default_rng([seed, person, zlib.crc32(scanner.encode())])
    pixels = to_uint8(acquire(tissue, machine, noise), CHEST_WINDOW)[np.newaxis]
    return Phantom(Image(array=pixels, geometry=Geometry.plain(shape, has_physical_spacing=False)), label)


def write_chests(folder: Path, cohort: ChestCohort) -> Path:
    """Write chests as PNG photographs without spacing.

    The names begin with the scanner and are unique in the folder::

        images/A_train-0000.png            labels/A_train-0000.png
        unlabelled/B_unlabelled-0000.png
        tests/B/images/B_test-0000.png     tests/B/labels/B_test-0000.png
        tests.txt                          the test cases, if there are any

    All of it is one source for `msd convert folder`: `--images '**/*.png' --labels '**/labels/*.png' --label-map
    1:lung --test-list tests.txt`. Each folder of images is also an input for `msd predict`, each of labels a
    reference for `msd evaluate`.

    Returns:
        the folder.

    Raises:
        UsageError: there is no such scanner.
    """
    tests = []
    for scanner, name, person in _persons(cohort.train, "train"):
        chest = make_chest(cohort.first_train + person, scanner, seed=cohort.seed, shape=cohort.shape)
        _write(folder, f"{name}.png", chest)
    for scanner, name, person in _persons(cohort.unlabelled, "unlabelled"):
        chest = make_chest(person, scanner, seed=cohort.seed, shape=cohort.shape)
        write_image(folder / "unlabelled" / f"{name}.png", chest.image)
    for scanner, name, person in _persons(cohort.test, "test"):
        chest = make_chest(person, scanner, seed=cohort.seed, shape=cohort.shape)
        _write(folder / "tests" / scanner, f"{name}.png", chest)
        tests.append(name)
    if tests:
        atomic.write_text(folder / TEST_LIST, "\n".join(tests) + "\n")
    return folder


def scanner_of(case: str) -> str:
    """Return the scanner in the name of a case that `write_chests` wrote."""
    return case.split("_")[0]


def shift_images(source: Path, destination: Path, seed: int) -> list[Path]:
    """Write every image of a folder as another scanner might have shown it: same names, grids and dtypes.

    Each file has its own shift, drawn from the seed and the name of its case; the channels of a file share theirs.

    Args:
        source: images of any format that can be written without loss; its sub-folders are not looked into.

    Returns:
        the files written.

    Raises:
        UsageError: the images would be overwritten, or are in a lossy format (.jpg).
        InputDataError: no image in the folder, or one that cannot be read.
    """
    if destination.resolve() == source.resolve():
        raise UsageError("the shifted images would replace the images", where=str(source), fix="name another folder")
    files = sorted(p for p in source.glob("*") if ending_of(p) and p.is_file() and not p.name.startswith("."))
    if not files:
        raise InputDataError("there is no image in the folder", where=str(source), fix="check the path")
    written = []
    for path in files:
        image, key = read_image(path), (seed, zlib.crc32(case_name_of(path).encode()))
        shifted = np.stack([shift_appearance(channel, key) for channel in image.array])
        write_image(destination / path.name, replace(image, array=shifted))
        written.append(destination / path.name)
    return written


def _persons(counts: Mapping[str, int], part: str) -> Iterator[tuple[str, str, int]]:
    """Yield scanner, name of the case and number of the person."""
    for scanner, n_cases in counts.items():
        find_scanner(scanner)
        first = _FIRST_PERSON[part]
        if part == "unlabelled":
            first += list(SCANNERS).index(scanner) * _PERSONS_OF_A_SCANNER
        for number in range(n_cases):
            # "-" before four digits: "_0000" would be a channel in nnU-Net's names.
            yield scanner, f"{scanner}_{part}-{number:04d}", first + number


def _write(folder: Path, name: str, phantom: Phantom, *, labelled: bool = True) -> None:
    write_image(folder / "images" / name, phantom.image)
    if labelled:
        write_label(folder / "labels" / name, phantom.label, phantom.image.geometry)


def _geometry(shape: tuple[int, ...], index: int, settings: PhantomSettings) -> Geometry:
    if settings.spacing_mm is None:
        return Geometry.plain(shape, has_physical_spacing=False)
    first = settings.spacing_mm[0] * (0.8 if index % 3 == 2 else 1.0)
    return Geometry.plain(shape, (first, *settings.spacing_mm[1:]))
