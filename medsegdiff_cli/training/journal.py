"""The journal of a training: `metrics.jsonl`, one object a line, and its picture `progress.png`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsegdiff_cli import atomic
from medsegdiff_cli.paths import METRICS_JSONL, PROGRESS_PNG

_MOST_LINES = 200
_MOST_STEPS_A_LINE = 100


def steps_per_line(steps: int) -> int:
    """Return after how many steps a line is due: about 200 lines a stage, at least one in 100 steps."""
    return max(1, min(_MOST_STEPS_A_LINE, steps // _MOST_LINES))


class Journal:
    """Appends to the run's `metrics.jsonl`.

    Each line has `stage`, `step`, `loss`, `terms` (their means since the line before), `lr` (of the step), `grad_norm`
    (mean, before clipping), `seconds` (since the stage began) and, after a validation, `validation` with `score`,
    `cases` and `details`.

    Args:
        folder: the run's fold folder.
    """

    def __init__(self, folder: Path) -> None:
        self._lines, self._picture = folder / METRICS_JSONL, folder / PROGRESS_PNG

    def rewind(self, stage: str, step: int) -> None:
        """Drop the stage's lines after `step`, and a line that a crash cut short."""
        if not self._lines.is_file():
            return
        text = self._lines.read_text(encoding="utf-8", errors="replace")
        kept = [line for line in self.lines() if not (line["stage"] == stage and line["step"] > step)]
        content = "".join(json.dumps(line) + "\n" for line in kept)
        if content != text:
            atomic.write_text(self._lines, content)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; numbers that JSON does not have become null."""
        self._lines.parent.mkdir(parents=True, exist_ok=True)
        with self._lines.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_finite(line), allow_nan=False) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """Return all whole lines."""
        result = []
        for text in self._lines.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and "stage" in line and "step" in line:
                result.append(line)
        return result

    def draw(self) -> None:
        """Write `progress.png`: loss terms, learning rate and validation score over the steps."""
        lines = self.lines() if self._lines.is_file() else []
        if not lines:
            return
        from medsegdiff_cli.training.figure import draw_progress

        with atomic.staged(self._picture) as temporary:
            draw_progress(lines, temporary)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
