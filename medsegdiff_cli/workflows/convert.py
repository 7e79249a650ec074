"""Convert: any published layout to a dataset folder; the layouts are found by listing the package."""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.errors import InputDataError, UsageError, did_you_mean

_PACKAGE = "medsegdiff_cli.dataset_conversion"


def available_formats() -> dict[str, Any]:
    """Return every format's `FormatInfo` by name: the modules of the package that have a FORMAT."""
    return {name: module.FORMAT for name, module in _format_modules().items()}


def conversion_options(**settings: Any) -> Any:
    """Return the `Options` of the converters from plain settings; see their class for the names.

    Raises:
        UsageError: an unknown name or a value of the wrong kind.
    """
    return validate(importlib.import_module(f"{_PACKAGE}.contract").Options, settings, "msd convert")


def convert_dataset(format_name: str, source: Path, destination: Path, options: Any) -> Any:
    """Convert `source` and return the `ConversionReport`.

    Args:
        destination: the dataset folder to be written, for example `raw/Dataset004_Hippocampus`.
        options: from `conversion_options`.

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


def _format_modules() -> dict[str, Any]:
    package = importlib.import_module(_PACKAGE)
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"{_PACKAGE}.{name}") for name in names]
    return {module.FORMAT.name: module for module in modules if hasattr(module, "FORMAT")}
