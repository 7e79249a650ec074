"""The shell contract, once: options that are spelled the same everywhere, exit codes, JSON on stdout."""

import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from medsegdiff_cli import log
from medsegdiff_cli.errors import MsdError, ResourceError, UsageError, did_you_mean, lacks_memory

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDTH_IN_FILES = 160
_TROUBLE_WITH_A_DISK = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.EDQUOT)

Function = TypeVar("Function", bound=Callable[..., Any])

DatasetArgument = Annotated[
    str | None, typer.Argument(metavar="DATASET", help="Id, name or path: 4, Dataset004_Hippocampus, ./my_dataset.")
]
DatasetOption = Annotated[str | None, typer.Option("--dataset", "-d", help="DATASET, spelled as in nnU-Net.")]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", help="Folder with raw/, preprocessed/, results/ [$MSD_WORKSPACE, ./msd_workspace]."),
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", help="2d or 3d (3d_fullres is understood) [the plan's default].")
]
PlansNameOption = Annotated[str, typer.Option("--plans-name", help="Name of the plan, for several side by side.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps [the best there is].")]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=0, help="Worker processes; 0 works in this one.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")
]
PresetOption = Annotated[str, typer.Option("--preset", help="Preset of the recipe, for example recommended or paper.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Only forecast time, memory and disk (a missing plan is made).")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]
VerboseOption = Annotated[int, typer.Option("--verbose", "-v", count=True, help="More detail.")]


# A command that fails after its result is printed (--fail-below) leaves that one object; the exit code says the rest.
_has_printed_json: ContextVar[bool] = ContextVar("has_printed_json", default=False)


def verb(function: Function) -> Function:
    """Turn a command's errors into one message on stderr and the right exit code.

    The command's `quiet`, `verbose` and `json_output` parameters, where it has them, set up logging and errors.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        verbose = int(kwargs.get("verbose") or 0)
        _has_printed_json.set(False)
        log.set_up(verbose, quiet=bool(kwargs.get("quiet")))
        try:
            function(*args, **kwargs)
        except MsdError as error:
            _fail(error.exit_code, str(error), error, bool(kwargs.get("json_output")))
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            _fail(130, "interrupted", None, bool(kwargs.get("json_output")))
        except BrokenPipeError:
            # The reader of our output has gone (`msd runs | head`); nothing is left to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Exception as error:
            if (trouble := _lack_of_memory(error) or _trouble_with_a_disk(error)) is not None:
                _fail(trouble.exit_code, str(trouble), trouble, bool(kwargs.get("json_output")))
            if verbose:
                raise
            hint = "  to do: run it again with -v for the details, and report them"
            _fail(1, f"internal error: {type(error).__name__}: {error}\n{hint}", error, bool(kwargs.get("json_output")))

    return run  # type: ignore[return-value]  # `wraps` gives it the signature of `function`


def _lack_of_memory(error: Exception) -> ResourceError | None:
    """Return what memory that was denied is to the user, wherever it came up; None for anything else."""
    if not lacks_memory(error):
        return None
    reason = f" ({str(error).splitlines()[0][:200]})" if str(error) else ""
    return ResourceError(
        f"the memory does not suffice{reason}",
        fix="see with --dry-run what the command takes; use fewer --workers, or a machine with more memory",
    )


def _trouble_with_a_disk(error: Exception) -> ResourceError | None:
    """Return what an error of the file system is to the user, wherever it came up; None for a fault of msd."""
    if not isinstance(error, OSError) or error.errno not in _TROUBLE_WITH_A_DISK:
        return None
    fix = "check the disk and your rights, then run the same command again"
    return ResourceError(f"a file cannot be used ({error.strerror})", where=str(error.filename or "unknown"), fix=fix)


def one_dataset(argument: str | None, option: str | None) -> str:
    """Return the dataset, given as DATASET or as `-d`.

    Raises:
        UsageError: neither or both are given.
    """
    if (argument is None) == (option is None):
        what = "no dataset is given" if argument is None else "DATASET and -d are both given"
        raise UsageError(what, where="DATASET", fix="name it once, for example 4")
    return argument or option or ""


def parse_numbers(text: str | None, flag: str) -> tuple[float, ...] | None:
    """Return the numbers of `1.5,1,1` or `128x128`.

    Raises:
        UsageError: something else.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise UsageError(f"'{text}' is no list of numbers", where=flag, fix=f"write {flag} 1.5,1,1") from None


def print_json(content: Any) -> None:
    """Print one JSON object on stdout."""
    _has_printed_json.set(True)
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, default=str))


def print_forecast(forecast: Mapping[str, str], json_output: bool, **facts: str) -> None:
    """Print what `--dry-run` found out, below further facts about the command."""
    if json_output:
        print_json({"schema_version": 1, **facts, "forecast": forecast})
    else:
        say("\n".join(f"{key}: {value}" for key, value in {**facts, **forecast}.items()))


def say(message: str, quiet: bool = False) -> None:
    """Print people's words to stderr."""
    if not quiet:
        typer.echo(message, err=True)


def print_table(renderable: "RenderableType") -> None:
    """Print a table on stdout; without a terminal it is as wide as it needs, so that nothing is cut in a log."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _WIDTH_IN_FILES).print(renderable)


@contextmanager
def progress_bar(label: str, total: int | None = None, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Yield `update(done=, advance=, total=, note=)`; a bar on stderr, silent when stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda **_: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, note="")

        def update(
            done: int | None = None, advance: int | None = None, total: int | None = None, note: str | None = None
        ) -> None:
            changes: dict[str, Any] = {"completed": done, "advance": advance, "total": total, "note": note}
            bar.update(task, **{key: value for key, value in changes.items() if value is not None})

        yield update


def one_of(value: str | None, known: Sequence[str], flag: str) -> None:
    """Check the value of a flag that has few values; None is always right.

    Raises:
        UsageError: none of the known values, with the nearest one.
    """
    if value is not None and value not in known:
        raise UsageError(f"{flag} '{value}' is unknown", where=flag, fix=did_you_mean(value, known))


def parse_pairs(texts: list[str] | None, separator: str, flag: str) -> dict[str, str]:
    """Turn the values of a repeatable flag, such as `--set key=value`, into a mapping.

    Raises:
        UsageError: an entry without the separator.
    """
    pairs = {}
    for text in texts or []:
        key, found, value = text.partition(separator)
        if not found or not key.strip():
            raise UsageError(f"'{text}' has no '{separator}'", where=flag, fix=f"write {flag} LEFT{separator}RIGHT")
        pairs[key.strip()] = value.strip()
    return pairs


def parse_duration(text: str | None, flag: str) -> float | None:
    """Return the seconds of `6h`, `90m`, `30s` or plain seconds.

    Raises:
        UsageError: no duration.
    """
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise UsageError(f"'{text}' is no duration", where=flag, fix="write 6h, 90m or 30s")
    return seconds


def _fail(code: int, message: str, error: BaseException | None, as_json: bool) -> None:
    typer.echo(f"error: {message}", err=True)
    if as_json and not _has_printed_json.get():
        details = {"what": message}
        if isinstance(error, MsdError):
            details = {"what": error.what, "where": error.where or "", "fix": error.fix or ""}
        print_json({"schema_version": 1, "exit_code": code, "error": details})
    raise typer.Exit(code) from error
