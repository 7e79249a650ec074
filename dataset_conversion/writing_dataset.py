"""Write a dataset folder from case sources: complete or not at all.

Everything goes to a hidden folder beside the destination, which takes the final name as the last step.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from medsegdiff_cli import __version__, atomic
from medsegdiff_cli.artifacts.dataset_folder import DatasetJson, write_dataset_json
from medsegdiff_cli.artifacts.splits import Splits, write_splits
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.locks import locked
from medsegdiff_cli.paths import DATASET_JSON, LOCK, SPLITS_JSON

from .case_source import CaseSource
from .contract import ConversionReport, Options
from .file_ending import choose_file_ending
from .label_table import LabelTable, table_of_map
from .writing_case import Readers, WrittenCase, make_colour, write_case

log = logging.getLogger(__name__)
_SHOWN_ERRORS = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a source says of itself.

    Attributes:
        table: None when nothing is labelled.
        channel_names: None when the files decide (R, G, B for colour photographs).
        notes: sentences for the report.
        more: further keys of dataset.json (reference, release, ...).
        readers: the layout's own readers, for files that are not on one grid or no images.
        splits: the folds that the release or its protocol prescribes; None leaves them to planning.
    """

    table: LabelTable | None
    channel_names: tuple[str, ...] | None = None
    description: str = ""
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    readers: Readers = field(default_factory=Readers)
    splits: Splits | None = None


def write_dataset(
    format_name: str, sources: Sequence[CaseSource], declared: Declared, destination: Path, options: Options
) -> ConversionReport:
    """Read, check and write all cases, then dataset.json, then give the folder its name.

    Raises:
        InputDataError: no image, or bad cases (all of them are tried and the first few named).
        UsageError: the destination exists and overwriting was not asked for.
    """
    if not sources:
        raise InputDataError("the source holds no image that this format knows", fix="check the path and --images")
    _refuse_doubles(sources)
    ending = choose_file_ending([image for source in sources for image in source.images], options.file_ending)
    names = options.channel_names or declared.channel_names
    table = declared.table or table_of_map({1: "foreground"}, None)
    with new_dataset(destination, overwrite=options.overwrite) as folder:
        atomic.require_space(folder, _least_bytes(sources), "the dataset")

        def write(source: CaseSource) -> WrittenCase:
            collapse = declared.channel_names is None
            fix_affine = options.fix_affine
            return write_case(folder, source, table, ending, declared.readers, collapse=collapse, fix_affine=fix_affine)

        written = for_all_cases(write, sources, options.workers)
        n_channels = _equal_channels(folder, written)
        channel_names = _name_channels(names, n_channels, is_colour=ending == ".png")
        info = _dataset_json(sources, declared, table, channel_names, ending, options, destination.name)
        write_dataset_json(folder, info)
        if declared.splits is not None:
            write_splits(folder / SPLITS_JSON, declared.splits)
    aligned = tuple(sorted(case.source.case for case in written if case.aligned))
    if aligned:
        log.info("%d cases: label or channel moved by less than 0.1 voxel onto the image's grid", len(aligned))
    parts = Counter(source.part for source in sources)
    return ConversionReport(
        format=format_name,
        destination=destination,
        n_training=parts["Tr"],
        n_test=parts["Ts"],
        n_test_labelled=sum(source.part == "Ts" and source.label is not None for source in sources),
        n_unlabelled=parts["Un"],
        channel_names=info.channel_names,
        labels=info.labels,
        file_ending=ending,
        aligned=aligned,
        notes=declared.notes,
    )


def for_all_cases(action: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """Apply `action` to every item, in order, and report every bad one in a single error.

    Raises:
        InputDataError: the first few bad items' messages, and how many there are.
    """
    errors: list[InputDataError] = []

    def try_one(item: Item) -> Result | None:
        try:
            return action(item)
        except InputDataError as error:
            errors.append(error)
            return None

    # Threads: reading and (de)compressing release the interpreter lock, and errors need no pickling.
    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        try:
            results = list(pool.map(try_one, items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C must not wait for all other cases
            raise
    if len(errors) == 1:
        raise errors[0]
    if errors:
        shown = sorted(f"{error.where}: {error.what}" for error in errors)
        more = [f"... and {len(shown) - _SHOWN_ERRORS} more"] if len(shown) > _SHOWN_ERRORS else []
        fixes = sorted({error.fix for error in errors if error.fix})
        raise InputDataError(
            f"{len(errors)} of {len(items)} cases cannot be used; nothing was written",
            where="\n         ".join(shown[:_SHOWN_ERRORS] + more),
            fix="; or ".join(fixes[:3]) or None,
        )
    return [result for result in results if result is not None]


@contextmanager
def new_dataset(destination: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty hidden folder beside `destination`, which takes its name when the block ends without an error.

    Raises:
        UsageError: the destination holds something and `overwrite` is False, or it is no dataset folder; or another
            process is writing it.
        ResourceError: the disk is full, read-only or fails.
    """
    with locked(destination.with_name(f"{LOCK}.{destination.name}")):
        atomic.put_back(destination)
        _refuse_occupied(destination, overwrite)
        with atomic.staged_folder(destination) as folder:
            yield folder


def _refuse_occupied(destination: Path, overwrite: bool) -> None:
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not overwrite:
        fix = "choose another --dataset or --name, or add --overwrite"
        raise UsageError("the dataset exists already", where=str(destination), fix=fix)
    if not (destination / DATASET_JSON).is_file():
        fix = "only dataset folders are overwritten; move it away yourself"
        raise UsageError("the destination exists and is no dataset folder", where=str(destination), fix=fix)


def _least_bytes(sources: Sequence[CaseSource]) -> int:
    """Return what the dataset takes at least: compressing halves most images that were not compressed."""
    files = [path for source in sources for path in source.images]
    return sum(path.stat().st_size for path in files if path.is_file()) // 2


def _refuse_doubles(sources: Sequence[CaseSource]) -> None:
    counts = Counter((source.part, source.case) for source in sources)
    doubles = sorted({case for (_, case), n in counts.items() if n > 1})
    if doubles:
        raise InputDataError(f"cases that occur twice: {', '.join(doubles[:10])}", fix="remove one of each")


def _equal_channels(folder: Path, written: Sequence[WrittenCase]) -> int:
    """Return the number of channels; grey photographs among coloured ones become coloured.

    Raises:
        InputDataError: cases differ in their number of channels.
    """
    counts = Counter(case.n_channels for case in written)
    if set(counts) == {1, 3} and all(case.can_be_colour or case.n_channels == 3 for case in written):
        for case in written:
            if case.n_channels == 1:
                make_colour(folder, case)
        return 3
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = sorted(f"{case.source.case} ({case.n_channels})" for case in written if case.n_channels != usual)
        raise InputDataError(
            f"most cases have {usual} channels, but not {', '.join(odd[:10])}",
            fix="complete or leave out these cases",
        )
    return next(iter(counts))


def _name_channels(names: Sequence[str] | None, n_channels: int, *, is_colour: bool) -> dict[str, str]:
    if not names:
        if n_channels == 1:
            names = ("image",)
        else:
            colours = is_colour and n_channels == 3
            names = ("R", "G", "B") if colours else tuple(f"channel_{i}" for i in range(n_channels))
    if len(names) != n_channels:
        raise InputDataError(
            f"{len(names)} channel names ({', '.join(names)}) for images of {n_channels} channels",
            fix="give one name a channel (--channel)",
        )
    return {str(index): name for index, name in enumerate(names)}


def _dataset_json(
    sources: Sequence[CaseSource],
    declared: Declared,
    table: LabelTable,
    channel_names: dict[str, str],
    ending: str,
    options: Options,
    folder_name: str,
) -> DatasetJson:
    domains = {source.case: options.domain or source.domain for source in sources}
    return DatasetJson(
        **{**declared.more, "converted_by": f"msd {__version__}"},
        channel_names=channel_names,
        labels=dict(table.labels),
        numTraining=sum(source.part == "Tr" for source in sources),
        file_ending=ending,
        regions_class_order=table.regions_class_order,
        name=options.name or folder_name.split("_", 1)[-1],
        description=declared.description,
        licence=options.licence or declared.licence,
        citation=declared.citation,
        source_label_values=dict(table.source_label_values),
        groups={s.case: s.group for s in sorted(sources, key=lambda s: s.case) if s.group},
        domains={case: domain for case, domain in sorted(domains.items()) if domain},
        extra_labels=sorted({observer for source in sources for observer in source.extra_labels}),
    )
