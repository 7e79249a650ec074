"""What training and its callers tell each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class ValidationScore:
    """Result of predicting validation cases with the current prediction weights.

    Attributes:
        value: the target metric, higher is better (`validation_metric`); NaN when undefined.
        cases: how many cases it was computed from.
        details: further figures for `metrics.jsonl`, for example the value of each class.
        others: the target metric of other ways to predict, by name (samplers); each keeps best weights of its own.
    """

    value: float
    cases: int
    details: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A finished stage; the method holds its prediction weights and is in `eval()`.

    Attributes:
        steps_done: fewer than the settings' steps after early stopping.
        best_score, best_step: of the validations; None and 0 without any.
        weights_digest: sha256 of `checkpoints/last.safetensors` ("" on ranks other than 0).
        seconds: time in the loop over all starts, validations included.
    """

    stage: str
    steps_done: int
    best_score: float | None
    best_step: int
    weights_digest: str
    seconds: float


class Progress(Protocol):
    """Who wants to show how far training is."""

    def update(self, step: int, steps: int, loss: float, score: float | None) -> None:
        """Take notice of a finished step.

        Args:
            step: steps done, of `steps`.
            loss: of this step.
            score: of the latest validation.
        """
