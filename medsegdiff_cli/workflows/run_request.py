"""The request: what `msd train` and `msd finetune` were asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch

from medsegdiff_cli.artifacts.plan import Scale
from medsegdiff_cli.errors import UsageError, did_you_mean
from medsegdiff_cli.paths import Workspace


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What `msd train` was asked for; None takes the plan's or recipe's own choice.

    Attributes:
        cases: keep so many labels (patients, or cases with `count="cases"`).
        overrides: `--set` assignments.
        parent: run whose weights training starts from (`--from`).
        pretraining: the pretraining that `msd train` made, or found finished, for a method that starts from one.
        min_coverage: least share of the network that the parent must fill.
        max_time_s: save and stop after so long.
    """

    method: str
    dataset: str
    workspace: Workspace
    config: str | None = None
    fold: str = "0"
    cases: int | None = None
    count: Literal["groups", "cases"] = "groups"
    recipe: str | None = None
    preset: str = "recommended"
    scale: Scale | None = None
    plans_name: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    selection: Literal["best", "last"] | None = None
    seed: int = 0
    name: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0
    parent: Path | None = None
    pretraining: Path | None = None
    min_coverage: float = 0.5
    max_time_s: float | None = None
    overwrite: bool = False

    @property
    def starts_from(self) -> Path | None:
        """The fold folder whose weights training starts from."""
        return self.parent or self.pretraining

    def __post_init__(self) -> None:
        choices = {
            "--scale": (self.scale, get_args(Scale)),
            "--count": (self.count, ("groups", "cases")),
            "--selection": (self.selection, ("best", "last")),
        }
        for flag, (given, known) in choices.items():
            if given is not None and given not in known:
                raise UsageError(f"'{given}' is no choice", where=flag, fix=did_you_mean(str(given), known))
