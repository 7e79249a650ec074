"""The errors a user can meet, one exit code each.

A message says what is wrong (with the value), where (file, key or case) and what to do next.
Every other exception that reaches `main` is a fault of msd itself and exits with code 1.
`docs/reference/errors.md` is written from this file: of each docstring, the first paragraph says what the exit code
means, the second, "To do: ...", what a person or a script does then.
"""

import difflib
import errno
from collections.abc import Iterable

# What torch, CUDA, ITK, the C++ library and the system say when memory cannot be had.
_LACK_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "bad allocation",
    "bad_alloc",
    "alloc_failed",
)


# What a disk, a network or a limit of the system does, whatever the file.
_MACHINE_ERRORS = (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ESTALE)


class MsdError(Exception):
    """Base of all errors that are meant for the user.

    Args:
        what: the problem, with the offending value.
        where: file, key or case in which it was found.
        fix: the next thing to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  to do: {self.fix}")
        return visible("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(kind: type[MsdError], what: str, where: str | None, fix: str | None) -> MsdError:
    """Unpickle an error that crosses a process boundary (keyword arguments are lost by default)."""
    return kind(what, where=where, fix=fix)


class UsageError(MsdError):
    """A wrong flag, key or name, or a run whose plan was changed.

    To do: read the line "to do", which names the flag or the nearest known name, and change the command.
    The same command fails again: a script stops here.
    """

    exit_code = 2


class InputDataError(MsdError):
    """An image, label or dataset that cannot be used as it is.

    To do: mend or remove the files that are named; `msd check DATASET` lists all problems at once.
    Nothing was written for these files.
    """

    exit_code = 3


class ResourceError(MsdError):
    """Not enough memory, disk or workers, or a device that is missing.

    To do: free some space, ask for less (`--workers`, `--window-batch`, `--scale`) or use another `--device`. What is
    finished is kept: run the same command again.
    """

    exit_code = 4


class PartialFailure(MsdError):
    """Some cases failed, the others were written.

    To do: mend the cases that are named and run the same command again; only these are worked on.
    """

    exit_code = 5


class IntegrityError(MsdError):
    """A model or an archive that is damaged or not to be trusted.

    To do: do not use the file. Copy it again from where it came from and compare the checksum, or train again.
    """

    exit_code = 6


class NotFinished(MsdError):
    """The time budget is used up; the same command goes on.

    To do: run the same command again, as often as it takes.
    """

    exit_code = 7


class BelowDemandedScore(MsdError):
    """A score is below the one that --fail-below asked for.

    To do: look at the scores, which are written, before the predictions are used.
    """

    exit_code = 8


class Interrupted(MsdError):
    """Stopped by SIGINT or SIGTERM after saving.

    To do: run the same command again; it goes on where it was.
    """

    exit_code = 130


def visible(text: str) -> str:
    """Return a text with its control characters spelled out: a name from a file cannot forge what a terminal shows."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error of Python, torch, CUDA or ITK says that memory could not be had, here or on a device."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError)) and any(words in text for words in _LACK_OF_MEMORY)
    )


def reading_error(
    problem: OSError, where: str, otherwise: type[MsdError] = InputDataError, *, fix: str | None = None
) -> MsdError:
    """Return what it means that the system cannot read a file.

    Args:
        where: the file.
        otherwise: the error, with `fix`, when it is neither a disk or a network that fails nor too many open files.
    """
    if problem.errno in (errno.EMFILE, errno.ENFILE):
        fix = "allow more open files (ulimit -n 4096), or use fewer --workers; then run the same command again"
    elif problem.errno in _MACHINE_ERRORS:
        fix = "check disk and network, then run the same command again"
    else:
        return otherwise(f"the file cannot be read ({problem.strerror or problem})", where=where, fix=fix)
    return ResourceError(f"reading failed ({problem.strerror})", where=where, fix=fix)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a sentence that names the nearest known word, or all of them when none is near."""
    choices = sorted(known)
    # A forgotten unit ("patch_size" for "patch_size_voxels") comes before a likely slip of the fingers ("batch_size").
    longer = sorted((word for word in choices if word.startswith(f"{given}_")), key=len)
    near = longer or difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(choices)}" if choices else "none is known"
