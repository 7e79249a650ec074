"""FFHQ-34: photographs of faces with fine labels, as LEDM's authors publish them (ddpm-segmentation).

Source: D. Baranchuk et al., Label-Efficient Semantic Segmentation with Diffusion Models, ICLR (2022). 20 photographs of
256 x 256 pixels to train with and 20 to test. A label is a numpy file beside its photograph; its values are the places
of the 34 class names in the published list, 0 is background, and 255 counts nowhere. A label finer than its photograph
is thinned, as the published code does.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsegdiff_cli.artifacts.dataset_folder import Part
from medsegdiff_cli.artifacts.splits import Fold, Splits
from medsegdiff_cli.atomic import staged_stream
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import read_geometry, unreadable
from medsegdiff_cli.imaging.writing import write_image

from .case_source import CaseSource, bare_name, is_hidden, name_cases, safe_name, visible_files
from .contract import ConversionReport, FormatInfo, Options
from .label_table import table_of_map
from .phantom import phantom
from .test_set import set_aside
from .writing_case import Readers
from .writing_dataset import Declared, write_dataset

# Values 1 to 33. The published names are paths, "head***eye***iris"; their last parts are unique.
_CLASSES = (
    *("head", "cheek", "chin", "ear", "helix", "lobule", "bottom_lid", "eyelashes", "iris", "pupil", "sclera"),
    *("tear_duct", "top_lid", "eyebrow", "forehead", "frown", "hair", "sideburns", "jaw", "moustache"),
    *("inferior_lip", "oral_commissure", "superior_lip", "teeth", "neck", "nose", "ala_of_nose", "bridge"),
    *("nose_tip", "nostril", "philtrum", "temple", "wrinkles"),
)
_IGNORED = 255
_FIX = "take the published file, or save it with numpy.save as two axes of uint8"

FORMAT = FormatInfo(
    name="ffhq34",
    title="FFHQ-34 faces (LEDM's 20 training and 20 test photographs)",
    reads=(
        "A folder with real/train and real/test (or train and test), each of photographs X.png with labels X.npy "
        "beside them: integers 0 to 33, 255 is ignored. All of test become test cases; with --test-count N, N drawn "
        "of them do and the others validate fold 0, whose training cases are those of train (splits_final.json)."
    ),
    example="msd convert ffhq34 datasets/ffhq_34 --dataset 38 --name FFHQ34 --test-count 10",
    options=frozenset({"test_count", "seed"}),
    citation=(
        "D. Baranchuk, I. Rubachev, A. Voynov, V. Khrulkov, A. Babenko, Label-Efficient Semantic Segmentation with "
        "Diffusion Models, ICLR (2022)"
    ),
)


def convert(source: Path, destination: Path, options: Options) -> ConversionReport:
    """Write the dataset folder.

    Raises:
        InputDataError: no photograph, a label without one, or a case that cannot be used.
        UsageError: a test set that cannot be made.
    """
    real = source / "real" if (source / "real").is_dir() else source
    training = _cases(real / "train", "Tr")
    test = _cases(real / "test", "Tr" if options.test_count else "Ts")
    test, notes = set_aside(test, options)
    declared = Declared(
        table=table_of_map({**dict(enumerate(_CLASSES, start=1)), _IGNORED: "ignore"}, None),
        citation=FORMAT.citation,
        notes=notes,
        readers=Readers(label=_read_thinned),
        splits=_splits(training, test),
    )
    return write_dataset(FORMAT.name, [*training, *test], declared, destination, options)


def make_fake_source(folder: Path) -> Options:
    """Write two photographs to train with, one without a label, and two to test with, one with ignored pixels."""
    grid = Geometry.plain((24, 20), has_physical_spacing=False)
    for index, place in enumerate(("train", "train", "train", "test", "test")):
        image, label = phantom(grid.shape, (1, 33), seed=index)
        label[0, 0, :5] = _IGNORED if index == 3 else 0
        below = folder / "real" / place
        write_image(below / f"image_{index}.png", Image(array=np.concatenate([image] * 3), geometry=grid))
        if index != 2:
            with staged_stream(below / f"image_{index}.npy") as stream:
                np.lib.format.write_array(stream, label[0], allow_pickle=False)
    return Options(test_count=1)


def _cases(folder: Path, part: Part) -> list[CaseSource]:
    """Return the cases of real/train or real/test, whose name begins their names."""
    images = visible_files(folder)
    if not images:
        fix = "give the folder ffhq_34 of LEDM's datasets"
        raise InputDataError("no photographs", where=str(folder), fix=fix)
    labels = {path for path in folder.glob("*.npy") if not is_hidden(folder, path)}
    if orphans := sorted(labels - {_label_of(path) for path in images}):
        fix = "add the photograph, or remove the label"
        raise InputDataError("a label has no photograph", where=str(orphans[0]), fix=fix)
    unlabelled: Part = "Un" if part == "Tr" else part
    return [
        CaseSource(
            case=safe_name(f"{folder.name}_{name}"),
            part=part if _label_of(path) in labels else unlabelled,
            images=(path,),
            label=_label_of(path) if _label_of(path) in labels else None,
        )
        for path, name in name_cases(folder, images).items()
    ]


def _label_of(image: Path) -> Path:
    return image.with_name(f"{bare_name(image)}.npy")


def _splits(training: Sequence[CaseSource], test: Sequence[CaseSource]) -> Splits | None:
    """Return the one fold that validates on the test photographs that are not set aside; None if all are."""
    train, val = (tuple(sorted(case.case for case in cases if case.part == "Tr")) for cases in (training, test))
    return Splits(folds=(Fold(train=train, val=val),)) if val else None


def _read_thinned(path: Path) -> Image:
    """Read a label as (1, y, x) on its photograph's grid: every k-th pixel where it is k times finer."""
    label = _read_npy(path)
    image = next(image for image in visible_files(path.parent) if _label_of(image) == path)
    shape = read_geometry(image).shape
    factors = {n // m if n % m == 0 else 0 for n, m in zip(label.shape, shape, strict=True)}
    step = factors.pop() if len(factors) == 1 and 0 not in factors else 1
    thinned = label[::step, ::step]
    return Image(array=thinned[np.newaxis], geometry=Geometry.plain(thinned.shape, has_physical_spacing=False))


def _read_npy(path: Path) -> np.ndarray:
    """Read a numpy file of (y, x) whole numbers; one with Python objects, which would be unpickled, is refused.

    Raises:
        InputDataError: no numpy file, objects in it, truncated or too long, other than two axes, no whole numbers.
    """
    try:
        label = _mapped(path)
    except OSError as error:
        raise unreadable(error, path) from error
    if label.ndim != 2 or 0 in label.shape:
        raise InputDataError(f"a label has two axes, this array has shape {label.shape}", where=str(path), fix=_FIX)
    is_whole = label.dtype.kind in "iu" or (label.dtype.kind == "f" and np.array_equal(label, np.rint(label)))
    if not is_whole or label.min() < -(2**31) or label.max() >= 2**31:
        raise InputDataError(f"label values ({label.dtype}) are no small integers", where=str(path), fix=_FIX)
    return label.astype(np.int32)


def _mapped(path: Path) -> np.ndarray:
    """Return the array, mapped: its header cannot ask for more memory than the file has bytes."""
    with path.open("rb") as stream:
        if stream.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            raise InputDataError("no numpy file (.npy)", where=str(path), fix=_FIX)
    try:
        array: np.memmap = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        # Mapping takes no memory: it is the parser that runs out of it, at a header nested too deeply.
        why = str(error) or type(error).__name__
        raise InputDataError(f"no array of plain numbers ({why})", where=str(path), fix=_FIX) from error
    if surplus := path.stat().st_size - array.offset - array.nbytes:
        raise InputDataError(f"{surplus} bytes after an array of {array.shape}", where=str(path), fix=_FIX)
    return array
