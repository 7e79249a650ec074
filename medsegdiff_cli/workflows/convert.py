"""Convert: any published layout to a dataset folder; the layouts are found by listing the package."""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.errors import InputDataError, UsageError, did_you_mean

_PACKAGE = "medsegdiff_cli.dataset_conversion"


def available_formats() -> dict[str, Any]:
    """Return every format's `FormatInfo` by name: the modules of the package that have a FORMAT."""
    return {name: module.FORMAT for name, module in _format_modules().items()}


def parse_options(
    *, label_map: Sequence[str] = (), extra_labels: Sequence[str] = (), test_list: Path | None = None, **settings: Any
) -> Any:
    """Return the converters' `Options` (see their class for all names) from the words of a command line.

    Args:
        label_map: "VALUE:NAME" each, for example "255:lung".
        extra_labels: "OBSERVER=SUFFIX" each, for example "second=_2ndHO".
        test_list: file with one case or group a line.

    Raises:
        UsageError: an unknown name, a value of the wrong kind, or a missing test list.
    """
    values = [_split_pair(text, ":", "--label-map", "VALUE:NAME") for text in label_map]
    observers = [_split_pair(text, "=", "--extra-labels", "OBSERVER=SUFFIX") for text in extra_labels]
    for flag, pairs in (("--label-map", values), ("--extra-labels", observers)):
        keys = [key for key, _ in pairs]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise UsageError(f"'{twice[0]}' is given twice", where=flag, fix="leave one out")
    if test_list is not None and not test_list.expanduser().is_file():
        raise UsageError(f"no file '{test_list}'", where="--test-list", fix="check the path")
    given = {
        **settings,
        "label_map": dict(values),
        "extra_labels": dict(observers),
        "test_list": None if test_list is None else test_list.expanduser().resolve(),
    }
    return validate(importlib.import_module(f"{_PACKAGE}.contract").Options, given, "msd convert")


def convert_dataset(format_name: str, source: Path, destination: Path, options: Any) -> Any:
    """Convert `source` and return the `ConversionReport`.

    Args:
        destination: the dataset folder to be written, for example `raw/Dataset004_Hippocampus`.
        options: from `parse_options`.

    Raises:
        UsageError: an unknown format, an option that it does not understand, or an existing destination.
        InputDataError: the source is missing or cannot be used; then nothing was written.
    """
    modules = _format_modules()
    if format_name not in modules:
        raise UsageError(f"no format '{format_name}'", where="msd convert", fix=did_you_mean(format_name, modules))
    module = modules[format_name]
    importlib.import_module(f"{_PACKAGE}.contract").refuse_foreign_options(module.FORMAT, options)
    source, destination = Path(source).expanduser().resolve(), Path(destination).expanduser().resolve()
    if not source.is_dir():
        raise InputDataError("the source is no folder", where=str(source), fix="give the folder that holds the files")
    if destination == source or destination in source.parents:
        fix = "choose a destination outside the source"
        raise UsageError("the destination contains the source", where=str(destination), fix=fix)
    return module.convert(source, destination, options)


def mask_files(folder: Path, glob: str | None) -> list[Path]:
    """Return the image files below `folder` that a glob (default: all, in every sub-folder) selects."""
    source = importlib.import_module(f"{_PACKAGE}.case_source")
    everything: list[Path] = source.visible_files(folder, recursive=True)
    if glob is None:
        return everything
    chosen = set(folder.glob(glob))
    return [path for path in everything if path in chosen]


def case_name(path: Path, label_suffix: str = "") -> str | None:
    """Return the name that `msd convert folder` gives to the case of a label file, None without the suffix."""
    source = importlib.import_module(f"{_PACKAGE}.case_source")
    bare: str = source.bare_name(path)
    if not bare.endswith(label_suffix):
        return None
    name: str = source.safe_name(bare.removesuffix(label_suffix))
    return name


def _split_pair(text: str, separator: str, flag: str, shape: str) -> tuple[str, str]:
    left, found, right = text.partition(separator)
    if not (left and found and right):
        raise UsageError(f"'{text}' is not {shape}", where=flag, fix=f"write {flag} {shape}")
    return left.strip(), right.strip()


def _format_modules() -> dict[str, Any]:
    package = importlib.import_module(_PACKAGE)
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"{_PACKAGE}.{name}") for name in names]
    return {module.FORMAT.name: module for module in modules if hasattr(module, "FORMAT")}
