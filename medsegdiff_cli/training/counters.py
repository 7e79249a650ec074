"""Where a stage stands, in plain numbers, and how they change."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Counters:
    """Where a stage stands: all of its state that is no tensor, as plain numbers that JSON keeps exactly.

    Attributes:
        step: optimiser steps done.
        logged_step, validated_step: steps at which the last line was written and the last validation ended.
        best_score, best_step, last_score: of the validations so far.
        best_others: the best score of each other way to predict (see `ValidationScore`), known to rank 0 alone.
        stale_validations: validations since the best one.
        stopped_early: `patience` is used up.
        seconds: time spent, over all starts.
        window: sums of the loss terms (and of the gradient norm) since the last line, over `window_steps`.
    """

    step: int = 0
    logged_step: int = 0
    validated_step: int = 0
    best_score: float | None = None
    best_step: int = 0
    last_score: float | None = None
    best_others: dict[str, float] = field(default_factory=dict)
    stale_validations: int = 0
    stopped_early: bool = False
    seconds: float = 0.0
    window_steps: int = 0
    window: dict[str, float] = field(default_factory=dict)

    def count(self, figures: Mapping[str, float]) -> None:
        """Take in a step that was made."""
        self.step += 1
        self.window_steps += 1
        for name, value in figures.items():
            self.window[name] = self.window.get(name, 0.0) + value

    def close_window(self) -> dict[str, float]:
        """Return the means since the line before, and begin a new window."""
        means = {name: total / self.window_steps for name, total in self.window.items()}
        self.window, self.window_steps, self.logged_step = {}, 0, self.step
        return means

    def improves(self, value: float) -> bool:
        """Return whether a score is the best so far; NaN never is."""
        return value > (-math.inf if self.best_score is None else self.best_score)

    def improvements(self, others: Mapping[str, float]) -> dict[str, float]:
        """Return which of the other ways to predict are better than before, and remember them; NaN never is."""
        better = {name: value for name, value in others.items() if value > self.best_others.get(name, -math.inf)}
        self.best_others.update(better)
        return better

    def judge(self, value: float, patience: int | None) -> None:
        """Take in a validation, and decide whether it was one too many without improvement."""
        self.validated_step = self.step
        self.last_score = value if math.isfinite(value) else None
        if self.improves(value):
            self.best_score, self.best_step, self.stale_validations = value, self.step, 0
        else:
            self.stale_validations += 1
        self.stopped_early = patience is not None and self.stale_validations >= patience
