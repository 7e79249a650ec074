"""One line a fault: `make faults` runs every test marked `fault("F01", ...)`, wherever it stands, and sums up.

A fault is something that goes wrong around the software (a file cut short, a full disk, a killed process), and its
tests say what must happen then. `tests/faults/faults.yaml` names them all.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

LIST = Path(__file__).parent / "faults" / "faults.yaml"
_COUNTED = {"passed": "passed", "failed": "failed", "error": "failed", "skipped": "skipped"}


def faults_of(item: pytest.Item) -> tuple[str, ...]:
    """Return the faults that a test is about."""
    return tuple(dict.fromkeys(name for marker in item.iter_markers("fault") for name in marker.args))


def known_faults() -> dict[str, str]:
    """Return what each fault is and what must happen, by its id."""
    content: dict[str, str] = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    return content


class FaultReport:
    """Pytest plugin: keeps each test's faults with its outcome, and prints a line for every fault that was tried."""

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        """Write the faults into the reports, which also come back from the processes of xdist."""
        known = known_faults()
        for item in items:
            for name in faults_of(item):
                if name not in known:
                    raise pytest.UsageError(f"{item.nodeid}: {name} is not in {LIST}")
                item.user_properties.append(("fault", name))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the lines, in the order of the list."""
        if terminalreporter.config.getoption("markexpr") != "fault":
            return
        counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_COUNTED.values(), 0))
        for outcome, column in _COUNTED.items():
            for report in terminalreporter.getreports(outcome):
                for key, name in report.user_properties:
                    if key == "fault" and (report.when == "call" or outcome != "passed"):
                        counts[name][column] += 1
        terminalreporter.section("faults")
        for name, title in known_faults().items():
            terminalreporter.write_line(f"{name} {_verdict(counts[name])}  {title}")


def _verdict(counts: dict[str, int]) -> str:
    if counts["failed"]:
        return f"FAILED ({counts['failed']} of {sum(counts.values())})"
    if counts["passed"]:
        return f"ok ({counts['passed']})"
    return "skipped" if counts["skipped"] else "NOT TRIED"
