"""Problem: one thing that is wrong, doubtful or worth knowing about a dataset, and the report that lists them all."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
_ORDER: Mapping[str, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding.

    Attributes:
        severity: "error" stops a training or falsifies its scores, "warning" deserves a look, "note" informs.
        code: short stable name, for scripts.
        case: "" when it concerns the whole dataset.
        message: what was found, with values.
        fix: what to do; "" when nothing need be done.
    """

    severity: Severity
    code: str
    message: str
    case: str = ""
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All findings, errors first.

    Attributes:
        n_cases: per part: "Tr", "Ts", "Un".
    """

    dataset: str
    n_cases: Mapping[str, int]
    problems: tuple[Problem, ...]

    @property
    def is_usable(self) -> bool:
        """True when no problem is an error."""
        return all(problem.severity != "error" for problem in self.problems)

    def counts(self) -> dict[str, int]:
        """Return the number of problems of each severity."""
        found = Counter(problem.severity for problem in self.problems)
        return {f"{severity}s": found[severity] for severity in ("error", "warning", "note")}

    def to_json(self) -> dict[str, Any]:
        """Return plain data with a schema version."""
        return {
            "schema_version": 1,
            "dataset": self.dataset,
            "n_cases": dict(self.n_cases),
            "counts": self.counts(),
            "problems": [asdict(problem) for problem in self.problems],
        }


def sorted_problems(problems: list[Problem]) -> tuple[Problem, ...]:
    """Sort by severity, code and case, so that a report does not depend on the order of reading."""
    return tuple(sorted(problems, key=lambda p: (_ORDER[p.severity], p.code, p.case, p.message)))
