"""One start of one stage: steps, and what is due between them (validation, journal, checkpoints, leaving).

A step is either made wholly or not at all, and what was due after it may be caught up by the next start: so a training
that was stopped anywhere equals an undisturbed one.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.errors import IntegrityError, Interrupted, NotFinished, ResourceError
from medsegdiff_cli.methods.base import enter_stage
from medsegdiff_cli.paths import BEST, LAST, best_of
from medsegdiff_cli.training.checkpoints import StageCheckpoints
from medsegdiff_cli.training.counters import Counters
from medsegdiff_cli.training.journal import Journal, steps_per_line
from medsegdiff_cli.training.optimisation import learning_rate
from medsegdiff_cli.training.outcome import Progress, StageResult, ValidationScore
from medsegdiff_cli.training.signals import StopAtOnce, StopSignals
from medsegdiff_cli.training.updater import StepFigures, Updater

log = logging.getLogger(__name__)

_VALIDATIONS = 10
_SECONDS_BETWEEN_PICTURES = 30.0
_GRADIENT_NORM = "gradient norm"


@dataclass(frozen=True, kw_only=True)
class Collaborators:
    """What a stage needs from outside; see `train_stage`."""

    make_batches: Callable[[int], Iterator[Batch]]
    validate: Callable[[Any], ValidationScore] | None
    progress: Progress | None
    max_time_s: float | None


class StageRun:
    """Runs a stage from its newest checkpoint to its end, or until it is asked to stop."""

    def __init__(
        self,
        updater: Updater,
        outside: Collaborators,
        checkpoints: StageCheckpoints,
        journal: Journal,
        signals: StopSignals,
    ) -> None:
        self.updater, self.outside = updater, outside
        self.method, self.stage, self.settings, self.team = (
            updater.method,
            updater.stage,
            updater.settings,
            updater.team,
        )
        self.checkpoints, self.journal, self.signals = checkpoints, journal, signals
        self.counters = Counters()
        self._started = self._saved_at = time.monotonic()
        self._drawn_at = self._started
        self._seconds_before = 0.0
        self._validation: ValidationScore | None = None
        every = self.settings.validate_every_steps
        self._validate_every = max(1, self.settings.steps // _VALIDATIONS) if every is None else every
        self._line_every = steps_per_line(self.settings.steps)

    def run(self) -> StageResult:
        """Train to the end of the stage.

        Raises:
            Interrupted, NotFinished: saved before the end.
        """
        self._begin()
        self._tell_rates()
        enter_stage(self.method, self.stage)
        self._catch_up(None)
        if not self._is_over():
            batches = self.outside.make_batches(self.counters.step)
            try:
                while not self._is_over():
                    self._advance(batches)
            finally:
                close = getattr(batches, "close", None)
                if close is not None:
                    close()
        return self._finish()

    def _is_over(self) -> bool:
        return self.counters.step >= self.settings.steps or self.counters.stopped_early

    def _begin(self) -> None:
        """Restore the newest checkpoint, or start afresh; all ranks end up with the same state."""
        found = self.checkpoints.newest()
        if found is not None:
            self.updater.load(found)
            try:
                self.counters = Counters(**found.state["counters"])
            except (TypeError, KeyError) as error:
                raise IntegrityError(f"damaged counters ({error})", where=str(self.checkpoints.folder)) from None
            self._seconds_before = self.counters.seconds
            if found.state.get("world_size") != self.team.world_size:
                log.warning("another number of processes than before: same batches, but sums are rounded differently")
            log.info("stage '%s' goes on at step %d", self.stage.name, self.counters.step)
        if self.team.from_lead(float(self.counters.step))[0] != self.counters.step:
            raise ResourceError(
                "the training processes see different checkpoints",
                where=str(self.checkpoints.folder),
                fix="put the workspace on a file system that all machines share",
            )
        self.updater.share()
        if self.team.is_lead:
            if found is None:
                self.checkpoints.forget_best()
            self.journal.rewind(self.stage.name, self.counters.logged_step)

    def _tell_rates(self) -> None:
        """Log how far learning rates are apart, when they are and a stage begins."""
        factors = self.updater.rate_factors.values()
        if self.team.is_lead and self.counters.step == 0 and len(set(factors)) > 1:
            rate, n = self.settings.learning_rate, len(set(factors))
            log.info("%d learning rates, from %.3g to %.3g", n, rate * min(factors), rate * max(factors))

    def _advance(self, batches: Iterator[Batch]) -> None:
        """Make one step and what is due after it."""
        batch = self._next(batches)
        if batch is not None:
            self._count(self.updater.update(batch, self.counters.step))
        self._catch_up(self._asked_to_stop())
        if (time.monotonic() - self._saved_at) / 60 >= self.settings.checkpoint_minutes and not self._is_over():
            self._save()

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        """Return the next batch; None when it failed because a signal also reached the workers."""
        try:
            return next(batches)
        except StopIteration:
            raise RuntimeError(f"batches ended after {self.counters.step} of {self.settings.steps} steps") from None
        except Exception:
            # Other ranks would wait for this one's gradients: a team of several cannot leave between steps.
            if self.signals.received and self.team.world_size == 1:
                return None
            raise

    def _count(self, figures: StepFigures) -> None:
        counters = self.counters
        counters.count({**figures.terms, _GRADIENT_NORM: figures.gradient_norm})
        counters.seconds = self._seconds_before + time.monotonic() - self._started
        if self.outside.progress is not None and self.team.is_lead:
            self.outside.progress.update(counters.step, self.settings.steps, figures.loss, counters.last_score)

    def _asked_to_stop(self) -> Literal["signal", "time"] | None:
        """Return why all ranks must stop after this step."""
        limit = self.outside.max_time_s
        is_late = limit is not None and time.monotonic() - self._started >= limit
        signal, time_is_up = self.team.any(self.signals.received is not None, is_late)
        if signal:
            return "signal"
        return "time" if time_is_up and self.counters.step < self.settings.steps else None

    def _catch_up(self, stop: Literal["signal", "time"] | None) -> None:
        """Validate and log what is due at this step; leave when asked to, a validation then being left to later."""
        if self._validation_is_due():
            if stop is None and not self._validate():
                stop = "signal"
            if stop is None:
                self._write_line()
        elif self.counters.step % self._line_every == 0 or self.counters.step == self.settings.steps:
            self._write_line()
        if stop is not None:
            self._leave(stop)

    def _validation_is_due(self) -> bool:
        counters, every = self.counters, self._validate_every
        if self.outside.validate is None or every == 0 or counters.validated_step == counters.step:
            return False
        return counters.step % every == 0 or counters.step == self.settings.steps

    def _validate(self) -> bool:
        """Validate with the prediction weights on rank 0; False when a signal broke in."""
        counters, score = self.counters, None
        if self.team.is_lead and self.outside.validate is not None:
            with self.updater.averaged():
                self.method.eval()
                try:
                    with self.signals.at_once():
                        score = self.outside.validate(self.method)
                except StopAtOnce:
                    log.info("validation was broken off; it is made up for at the next start")
                if score is not None:
                    self._keep_best(score)
        enter_stage(self.method, self.stage)
        done, value = self.team.from_lead(float(score is not None), math.nan if score is None else score.value)
        if not done:
            return False
        self._validation = score
        counters.judge(value, self.settings.patience)
        if self.team.is_lead:
            best = math.nan if counters.best_score is None else counters.best_score
            log.info("step %d: validation %.4f (best: %.4f at step %d)", counters.step, value, best, counters.best_step)
            if counters.stopped_early:
                log.info("stopping early: no improvement in %d validations", counters.stale_validations)
        return True

    def _keep_best(self, score: ValidationScore) -> None:
        """Write the weights, which are those that were validated, under each name that they are the best of."""
        better = {best_of(name): value for name, value in self.counters.improvements(score.others).items()}
        if self.counters.improves(score.value):
            better[BEST] = score.value
        for name, value in better.items():
            self.checkpoints.write_weights(name, self.method.state_dict(), self.counters, value)

    def _write_line(self) -> None:
        """Write the means since the line before, and empty the window."""
        counters = self.counters
        if counters.window_steps == 0:
            return
        means = counters.close_window()
        norm = means.pop(_GRADIENT_NORM)
        line: dict[str, Any] = {
            "stage": self.stage.name,
            "step": counters.step,
            "loss": sum(means.values()),
            "terms": means,
            "lr": learning_rate(counters.step - 1, self.settings),
            "grad_norm": norm,
            "seconds": round(counters.seconds, 3),
        }
        if self._validation is not None and counters.validated_step == counters.step:
            score = self._validation
            line["validation"] = {"score": score.value, "cases": score.cases, "details": dict(score.details)}
            if score.others:
                line["validation"]["others"] = dict(score.others)
        if self.team.is_lead:
            self.journal.write(line)
        if "validation" in line:
            self._draw()

    def _draw(self, *, now: bool = False) -> None:
        if self.team.is_lead and (now or time.monotonic() - self._drawn_at >= _SECONDS_BETWEEN_PICTURES):
            self.journal.draw()
            self._drawn_at = time.monotonic()

    def _save(self) -> None:
        if self.team.is_lead:
            self.checkpoints.save(self.updater.tensors(), self.counters, self.team.world_size)
        self._saved_at = time.monotonic()
        self._draw()

    def _leave(self, why: Literal["signal", "time"]) -> None:
        self._save()
        # torchrun ends all ranks as soon as one is gone: rank 0 must have finished writing.
        self.team.wait()
        at = f"saved at step {self.counters.step} of {self.settings.steps} of stage '{self.stage.name}'"
        if why == "time":
            raise NotFinished(f"the time is used up; {at}", fix="run the same command again: it goes on from there")
        raise Interrupted(f"stopped by {self.signals.received or 'a signal'}; {at}", fix="run the same command again")

    def _finish(self) -> StageResult:
        self._save()
        self.updater.adopt_averages()
        self.method.eval()
        counters, digest = self.counters, ""
        if self.team.is_lead:
            score = counters.last_score if counters.validated_step == counters.step else None
            digest = self.checkpoints.write_weights(LAST, self.method.state_dict(), counters, score)
        self._draw(now=True)
        self.team.wait()
        return StageResult(
            stage=self.stage.name,
            steps_done=counters.step,
            best_score=counters.best_score,
            best_step=counters.best_step,
            weights_digest=digest,
            seconds=counters.seconds,
        )
