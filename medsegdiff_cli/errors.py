"""The errors a user can meet, one exit code each.

A message says what is wrong (with the value), where (file, key or case) and what to do next.
Every other exception that reaches `main` is a fault of msd itself and exits with code 1.
"""

import difflib
from collections.abc import Iterable


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
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(kind: type[MsdError], what: str, where: str | None, fix: str | None) -> MsdError:
    """Unpickle an error that crosses a process boundary (keyword arguments are lost by default)."""
    return kind(what, where=where, fix=fix)


class UsageError(MsdError):
    """A wrong flag, key or name, or a run whose plan was changed."""

    exit_code = 2


class InputDataError(MsdError):
    """An image, label or dataset that cannot be used as it is."""

    exit_code = 3


class ResourceError(MsdError):
    """Not enough memory, disk or workers, or a device that is missing."""

    exit_code = 4


class PartialFailure(MsdError):
    """Some cases failed, the others were written."""

    exit_code = 5


class IntegrityError(MsdError):
    """A model or an archive that is damaged or not to be trusted."""

    exit_code = 6


class NotFinished(MsdError):
    """The time budget is used up; the same command goes on."""

    exit_code = 7


class BelowDemandedScore(MsdError):
    """A score is below the one that --fail-below asked for."""

    exit_code = 8


class Interrupted(MsdError):
    """Stopped by SIGINT or SIGTERM after saving."""

    exit_code = 130


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a sentence that names the nearest known word, or all of them when none is near."""
    choices = sorted(known)
    # A forgotten unit ("patch_size" for "patch_size_voxels") comes before a likely slip of the fingers ("batch_size").
    longer = sorted((word for word in choices if word.startswith(f"{given}_")), key=len)
    near = longer or difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(choices)}" if choices else "none is known"
