"""Any folder of images: photographs or volumes, labels beside them or in a folder of their own."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medsegdiff_cli.artifacts.dataset_folder import Part
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import ending_of, read_label
from medsegdiff_cli.imaging.writing import write_image

from .case_source import CaseSource, bare_name, is_hidden, name_cases, safe_name
from .contract import ConversionReport, FormatInfo, Options
from .label_table import LabelTable, count_values, table_of_found, table_of_map
from .phantom import phantom
from .test_set import set_aside
from .writing_dataset import Declared, for_all_cases, write_dataset

FORMAT = FormatInfo(
    name="folder",
    title="Any folder of images",
    reads=(
        "PNG, JPG, BMP or TIFF photographs (grey or RGB), or NIfTI, NRRD, MHA or TIFF volumes of one channel a file. "
        "--images and --labels are globs below the source (** goes into sub-folders); a label belongs to the image "
        "whose name it shares, after --label-suffix is taken away. Images without a label become unlabelled."
    ),
    example=(
        "msd convert folder cxr --dataset 11 --name Lungs --images 'CXR_png/*.png' --labels 'mask/*.png' "
        "--label-suffix _mask --label-map 255:lung --threshold 127 --test-count 20"
    ),
    options=frozenset(
        {
            "images",
            "labels",
            "label_suffix",
            "label_map",
            "threshold",
            "extra_labels",
            "group_regex",
            "test_list",
            "test_count",
            "seed",
        }
    ),
)


def convert(source: Path, destination: Path, options: Options) -> ConversionReport:
    """Write the dataset folder.

    Raises:
        UsageError: options that contradict each other or match nothing.
        InputDataError: a label without an image, or a case that cannot be used.
    """
    suffixes = {"": options.label_suffix, **options.extra_labels}
    labels = find_labels(source, options, suffixes)
    all_labels = {path for found in labels.values() for path in found}
    images = [path for path in find_files(source, options.images or "**/*") if path not in all_labels]
    if options.images and not images:
        raise UsageError(f"no image matches '{options.images}'", where=f"--images in {source}", fix="check the glob")
    names = name_cases(source, images)
    label_of = {observer: pair_labels(names, found, suffixes[observer]) for observer, found in labels.items()}
    group_of = {path: group_in(path, options.group_regex) for path in names}
    sources = [_case(path, name, label_of, group_of[path]) for path, name in names.items()]
    sources, test_notes = set_aside(sources, options)
    declared = Declared(
        table=choose_table([case.label for case in sources if case.label], options),
        notes=(*test_notes, *_notes(names, sources, suffixes)),
    )
    return write_dataset(FORMAT.name, sources, declared, destination, options)


def make_fake_source(folder: Path) -> Options:
    """Write colour and grey photographs of three patients, masks of two observers with greys, one image unlabelled."""
    grid = Geometry.plain((24, 20), has_physical_spacing=False)
    for index, name in enumerate(("p1_left", "p1_right", "p2_left", "p3_left")):
        image, mask = phantom(grid.shape, (255,), seed=index)
        colours = np.concatenate([image, image, image if index == 0 else 255 - image])
        write_image(folder / "photos" / f"{name}.dcm.png", Image(array=colours, geometry=grid))
        mask[0, 0, 0] = 3
        if name != "p3_left":
            for observer in "AB":
                write_image(folder / "masks" / f"{name}_{observer}.png", Image(array=mask, geometry=grid))
    return Options(
        images="photos/*.png",
        labels="masks/*_A.png",
        label_suffix="_A",
        extra_labels={"second": "_B"},
        label_map={255: "vessel"},
        threshold=127,
        group_regex=r"(p\d)_",
        domain="camera",
        test_count=1,
    )


def find_files(source: Path, pattern: str) -> list[Path]:
    """Return the image files below `source` (or at an absolute glob) that match, sorted, without hidden ones."""
    anchor = Path(pattern).anchor
    found = Path(anchor).glob(pattern[len(anchor) :]) if anchor else source.glob(pattern)
    return sorted({path for path in found if ending_of(path) and path.is_file() and not is_hidden(source, path)})


def find_labels(source: Path, options: Options, suffixes: Mapping[str, str]) -> dict[str, list[Path]]:
    """Return every observer's label files ("" is the main one); a file belongs to the longest suffix it ends with.

    Raises:
        UsageError: suffixes that cannot tell the files apart, or a glob that matches nothing.
    """
    if not options.labels and not options.label_suffix:
        if options.label_map or options.threshold is not None or options.extra_labels:
            fix = "say which files are labels with --labels or --label-suffix"
            raise UsageError("label values or observers are given, but no labels", where="msd convert folder", fix=fix)
        return {"": []}
    if len(set(suffixes.values())) < len(suffixes):
        raise UsageError("two observers share one suffix", where="--extra-labels", fix="give each its own suffix")
    found: dict[str, list[Path]] = {observer: [] for observer in suffixes}
    candidates = find_files(source, options.labels or "**/*")
    if options.extra_labels and options.labels:
        # --labels may name the main observer's files only; the others are found by their suffix.
        others = tuple(options.extra_labels.values())
        more = [path for path in find_files(source, "**/*") if bare_name(path).endswith(others)]
        candidates = sorted({*candidates, *more})
    for path in candidates:
        fitting = [observer for observer, suffix in suffixes.items() if bare_name(path).endswith(suffix)]
        if fitting:
            found[max(fitting, key=lambda observer: len(suffixes[observer]))].append(path)
    for observer, files in found.items():
        if not files:
            flag = f"--extra-labels {observer}" if observer else "--labels, --label-suffix"
            what = f"no label file ends with '{suffixes[observer]}'"
            raise UsageError(what, where=f"{flag} in {source}", fix="check glob and suffix")
    return found


def pair_labels(names: Mapping[Path, str], labels: Sequence[Path], suffix: str) -> dict[Path, Path]:
    """Return image to label: same bare name without the suffix; where that is ambiguous, also the same folder.

    Raises:
        InputDataError: labels without an image, or two labels for one image.
    """
    by_bare: dict[str, list[Path]] = {}
    for image in names:
        by_bare.setdefault(bare_name(image), []).append(image)
    paired: dict[Path, Path] = {}
    orphans = []
    for label in labels:
        bare = bare_name(label)
        fitting = by_bare.get(bare[: len(bare) - len(suffix)], [])
        if len(fitting) != 1:
            fitting = _of_same_folder(fitting or list(names), label)
        if len(fitting) != 1:
            orphans.append(label)
        elif fitting[0] in paired:
            where = f"{paired[fitting[0]]} and {label}"
            raise InputDataError(f"two labels for image '{fitting[0].name}'", where=where, fix="narrow --labels")
        else:
            paired[fitting[0]] = label
    if orphans:
        raise InputDataError(
            f"{len(orphans)} labels belong to no image: {', '.join(path.name for path in orphans[:5])}",
            where=str(orphans[0].parent),
            fix="give --label-suffix (what a label's name has more than its image's), or narrow --labels",
        )
    return paired


def group_in(path: Path, pattern: str | None) -> str:
    """Return the patient in a file name: the pattern's first group, else its whole match; "" without a pattern.

    Raises:
        UsageError: the pattern is wrong or not in the name.
    """
    if not pattern:
        return ""
    try:
        match = re.search(pattern, path.name)
    except re.error as error:
        raise UsageError(f"'{pattern}' is no regular expression ({error})", where="--group", fix="mend it") from None
    text = (match[1] if match.re.groups else match[0]) if match else None
    if not text:
        fix = "change the pattern so that it is in every image's name"
        raise UsageError(f"'{pattern}' is not in '{path.name}'", where="--group", fix=fix)
    return safe_name(text)


def choose_table(labels: Sequence[Path], options: Options) -> LabelTable | None:
    """Return the classes: as mapped by the options, else as found in all label files."""
    if options.label_map or options.threshold is not None:
        return table_of_map(options.label_map, options.threshold)
    if not labels:
        return None
    counts: Counter[int] = Counter()

    def count(path: Path) -> Counter[int]:
        return count_values(read_label(path, fix_affine=options.fix_affine).array)

    for found in for_all_cases(count, labels, options.workers):
        counts.update(found)
    return table_of_found(counts)


def _case(image: Path, name: str, label_of: Mapping[str, Mapping[Path, Path]], group: str) -> CaseSource:
    label = label_of[""].get(image)
    part: Part = "Un" if label is None else "Tr"
    extra = {observer: found[image] for observer, found in label_of.items() if observer and image in found}
    return CaseSource(case=name, part=part, images=(image,), label=label, extra_labels=extra, group=group)


def _of_same_folder(images: Sequence[Path], label: Path) -> list[Path]:
    """Return the images beside a label: patient1/image.nii.gz for patient1/mask.nii.gz."""
    return [image for image in images if image.parent == label.parent]


def _notes(names: Mapping[Path, str], sources: Sequence[CaseSource], suffixes: Mapping[str, str]) -> tuple[str, ...]:
    notes = []
    renamed = [(path, name) for path, name in names.items() if name != bare_name(path)]
    if renamed:
        path, name = renamed[0]
        notes.append(f"{len(renamed)} cases renamed, for example '{bare_name(path)}' to '{name}'")
    labelled = [case for case in sources if case.label]
    for observer in (name for name in suffixes if name):
        n_missing = sum(observer not in case.extra_labels for case in labelled)
        if n_missing:
            notes.append(f"{n_missing} labelled cases have no label by observer '{observer}'")
    return tuple(notes)
