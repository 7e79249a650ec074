"""The checkpoints of a run folder: what is in them, which are kept, from which one training goes on.

`step_NNNNNNNN` (the last two) hold everything that resuming needs; `best`, `best-SAMPLER` and `last` hold prediction
weights only.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from medsegdiff_cli.artifacts.checkpoint import Checkpoint, checkpoint_exists, read_checkpoint, write_checkpoint
from medsegdiff_cli.artifacts.document import read_json
from medsegdiff_cli.errors import IntegrityError, MsdError
from medsegdiff_cli.paths import BEST, LAST, best_of
from medsegdiff_cli.training.counters import Counters

log = logging.getLogger(__name__)

_KEPT = 2
_HEADER, _WEIGHTS = ".json", ".safetensors"


class StageCheckpoints:
    """The checkpoints of one stage in a run's `checkpoints/`.

    Args:
        folder: that folder.
        stage: the stage's name; checkpoints of other stages are left alone until this one has saved its first.
        adaptation: what is what in the network (see `networks.transfer.adaptation_data`), written into every header.
    """

    def __init__(self, folder: Path, stage: str, adaptation: Mapping[str, list[str]] | None = None) -> None:
        self.folder, self.stage = folder, stage
        self._adaptation = dict(adaptation or {})

    def save(self, tensors: Mapping[str, Tensor], counters: Counters, world_size: int) -> None:
        """Write `step_NNNNNNNN`, then remove all step checkpoints but this one and the one before.

        The one before is what a training goes on from when this one gets damaged.
        """
        earlier = {name: outcome for name, outcome in self.finished().items() if name != self.stage}
        state: dict[str, Any] = {
            "stage": self.stage,
            "finished": earlier,
            "counters": asdict(counters),
            "world_size": world_size,
        }
        state["adaptation"] = self._adaptation
        write_checkpoint(self.folder / f"step_{counters.step:08d}", tensors, state)
        kept = [path for path in self._steps() if _step_of(path) <= counters.step and _stage_of(path) == self.stage]
        # Weights without a header are what was being written, or removed, when a process was killed.
        for path in {file.with_suffix("") for file in self.folder.glob("step_*") if file.suffix in (_HEADER, _WEIGHTS)}:
            if path not in kept[:_KEPT]:
                _remove(path)

    def newest(self) -> Checkpoint | None:
        """Return the newest undamaged step checkpoint of this stage, with a warning for each damaged one.

        Raises:
            IntegrityError: there are some, but none is whole.
        """
        damage: IntegrityError | None = None
        for path in self._headers():
            if _stage_of(path) not in (self.stage, None):
                continue
            try:
                return read_checkpoint(path)
            except IntegrityError as error:
                log.warning("checkpoint %s is not usable (%s); trying the one before", path.name, error.what)
                damage = damage or error
        if damage is not None:
            raise IntegrityError(
                f"no checkpoint can be resumed from: {damage.what}",
                where=str(self.folder),
                fix="restore the files, or delete this folder to train from the beginning",
            )
        return None

    def write_weights(self, name: str, weights: Mapping[str, Tensor], counters: Counters, score: float | None) -> str:
        """Write the prediction weights `best`, `best-SAMPLER` or `last`; returns the sha256 of the weights' file."""
        summary = {"stage": self.stage, "step": counters.step, "score": score}
        finished = self.finished()
        if name == LAST:
            outcome = {key: getattr(counters, key) for key in ("best_score", "best_step", "seconds")}
            finished = {**finished, self.stage: {"steps_done": counters.step, **outcome}}
        _remove(self.folder / name)
        tensors = {f"model.{key}": tensor for key, tensor in weights.items()}
        return write_checkpoint(
            self.folder / name, tensors, {**summary, "finished": finished, "adaptation": self._adaptation}
        )

    def finished(self) -> dict[str, dict[str, Any]]:
        """Return the outcomes of the run's finished stages by name, from the newest header that can be read."""
        for path in (self.folder / LAST, *self._steps()):
            try:
                return dict(_header(path)["finished"])
            except (MsdError, KeyError, TypeError):
                continue
        return {}

    def read_last(self) -> Checkpoint | None:
        """Return `last` when it is whole and of this stage; a damaged one is made again from the step checkpoint."""
        path = self.folder / LAST
        if not checkpoint_exists(path) or _stage_of(path) != self.stage:
            return None
        try:
            return read_checkpoint(path)
        except IntegrityError as error:
            log.warning("%s is not usable (%s); it is made again", path.name, error.what)
            return None

    def stage_of_last(self) -> str | None:
        """Return the stage that `last` belongs to."""
        return _stage_of(self.folder / LAST)

    def digest_of_last(self) -> str:
        """Return the recorded sha256 of `last`'s weights."""
        return str(read_json((self.folder / LAST).with_suffix(_HEADER), IntegrityError)["sha256"])

    def forget_best(self) -> None:
        """Remove `best` and its like: they belong to an earlier stage, or to a beginning that is gone."""
        for file in [*self.folder.glob(f"{BEST}{_HEADER}"), *self.folder.glob(f"{best_of('*')}{_HEADER}")]:
            _remove(file.with_suffix(""))

    def _steps(self) -> list[Path]:
        """Return the complete step checkpoints, newest first."""
        return [path for path in self._headers() if checkpoint_exists(path)]

    def _headers(self) -> list[Path]:
        """Return the step checkpoints that were complete once, newest first."""
        found = [path.with_suffix("") for path in self.folder.glob(f"step_*{_HEADER}")]
        return sorted(found, key=_step_of, reverse=True)


def _header(path: Path) -> Any:
    return read_json(path.with_suffix(_HEADER), IntegrityError)["state"]


def _stage_of(path: Path) -> str | None:
    """Return a checkpoint's stage, None when its header is damaged."""
    try:
        return str(_header(path)["stage"])
    except (MsdError, KeyError, TypeError):
        return None


def _step_of(path: Path) -> int:
    digits = path.name.removeprefix("step_")
    return int(digits) if digits.isdigit() else -1


def _remove(path: Path) -> None:
    """Remove a checkpoint, its header first: without one it does not count as there."""
    path.with_suffix(_HEADER).unlink(missing_ok=True)
    path.with_suffix(_WEIGHTS).unlink(missing_ok=True)
