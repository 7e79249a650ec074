"""One seed of a reproduction: its phantoms, trainings (and the pretraining that they share), predictions and probes."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from medsegdiff_cli.artifacts.experiment import Declaration
from medsegdiff_cli.artifacts.experiment_arms import Arm
from medsegdiff_cli.artifacts.scores import Scores, read_scores
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.paths import PLANS_NAME, SUMMARY_JSON, Workspace
from medsegdiff_cli.workflows.evaluate import EvaluateRequest, evaluate_predictions
from medsegdiff_cli.workflows.predict import PredictRequest, prepare_prediction, run_prediction
from medsegdiff_cli.workflows.pretraining import request_pretraining
from medsegdiff_cli.workflows.reproduction_phantoms import DATASET, SeedPhantoms
from medsegdiff_cli.workflows.reproduction_probes import probe_scores
from medsegdiff_cli.workflows.run_request import TrainRequest
from medsegdiff_cli.workflows.run_setup import RunSetup, set_up_run
from medsegdiff_cli.workflows.train import train_run
from medsegdiff_cli.workflows.train_method import is_finished

_METRICS = ("dice", "iou", "precision", "recall")

Result = TypeVar("Result")
Values = dict[tuple[int, str, str], dict[str, dict[str, float]]]


class SeedRuns:
    """All runs of a seed, through the functions that the command line calls; what is finished is used again."""

    def __init__(
        self, folder: Path, declaration: Declaration, seed: int, device: torch.device, on_step: Callable[[str], None]
    ) -> None:
        self.folder, self.declaration, self.seed, self.device = folder, declaration, seed, device
        self.workspace = Workspace(folder / "workspace")
        self.phantoms = SeedPhantoms(self.workspace, folder / "phantoms", declaration.cohort, seed)
        self._on_step = on_step

    def steps(self, needed: Mapping[Arm, tuple[str, ...]]) -> int:
        """Return how many steps a seed takes: data, pretrainings, trainings, sets of predictions and probes."""
        pairs = [(arm, domain) for arm, domains in needed.items() for domain in domains]
        trainings = {(arm.run, self.phantoms.dataset_of(domain)) for arm, domain in pairs}
        return 1 + len(self._objectives(needed)) + len(trainings) + len(pairs)

    def scores(self, needed: Mapping[Arm, tuple[str, ...]]) -> Values:
        """Return (seed, arm's name, domain) to test person to metric to value.

        Args:
            needed: arms with the domains that they are tested on.
        """
        self._timed("phantoms, datasets and plans", self.phantoms.prepare, self.declaration.plan)
        parents: dict[str | None, Path | None] = {None: None}
        for objective in self._objectives(needed):
            parents[objective] = self._timed(f"pretraining {objective}", self._pretrain, objective)
        trained: dict[tuple[str, int], Path] = {}
        values: Values = {}
        for arm, domains in needed.items():
            parent = parents[self.declaration.objective_of(arm.method)]
            for domain in domains:
                dataset = self.phantoms.dataset_of(domain)
                if (arm.run, dataset) not in trained:
                    what = f"training {arm.run}" + ("" if dataset == DATASET else f" for {domain}")
                    trained[arm.run, dataset] = self._timed(what, self._train, arm, parent, dataset)
                do, verb = (self._predict, "predicting") if arm.probe is None else (self._probe, "probing")
                values[self.seed, arm.name, domain] = self._timed(
                    f"{verb} {domain} with {arm.name}", do, arm, trained[arm.run, dataset], domain
                )
        return values

    def _objectives(self, needed: Mapping[Arm, tuple[str, ...]]) -> list[str]:
        """Return the pretrainings that arms start from, each once."""
        asked = dict.fromkeys(self.declaration.objective_of(arm.method) for arm in needed)
        return [objective for objective in asked if objective is not None]

    def _pretrain(self, objective: str) -> Path:
        budget = self.declaration.pretraining
        assert budget is not None
        overrides = budget.settings_of(objective)
        settings = self._shared_settings(DATASET)
        return self._finish(
            set_up_run(request_pretraining(objective, None, budget.preset, overrides=overrides, **settings))
        )

    def _train(self, arm: Arm, parent: Path | None, dataset: int) -> Path:
        budget = self.declaration.heads
        overrides = budget.settings_of(arm.method)
        if arm.step is not None:
            overrides["timesteps"] = json.dumps([arm.step])
        request = TrainRequest(
            method=arm.method,
            preset=budget.preset,
            cases=arm.labels,
            parent=parent,
            overrides=overrides,
            **self._shared_settings(dataset),
        )
        return self._finish(set_up_run(request))

    def _shared_settings(self, dataset: int) -> dict[str, Any]:
        """Return what is the same in all trainings: all labelled cases may be drawn from, none validates."""
        return {
            "dataset": str(dataset),
            "workspace": self.workspace,
            "fold": "all",
            "plans_name": PLANS_NAME,
            "seed": self.seed,
            "device": self.device,
        }

    def _finish(self, setup: RunSetup) -> Path:
        if not is_finished(setup):
            train_run(setup)
        return setup.folder

    def _predict(self, arm: Arm, run: Path, domain: str) -> dict[str, dict[str, float]]:
        output = self.folder / "predictions" / arm.name / domain
        request = PredictRequest(
            models=(run,),
            source=self.phantoms.test_images(domain),
            output=output,
            sampling=_sampling_of(arm),
            seed=self.seed,
            device=str(self.device),
            workers=0,
        )
        report = run_prediction(prepare_prediction(request))
        if not report.written and (output / SUMMARY_JSON).is_file():
            return _by_person(read_scores(output))
        reference = self.phantoms.test_labels(domain)
        return _by_person(evaluate_predictions(EvaluateRequest(predictions=output, reference=reference)))

    def _probe(self, arm: Arm, run: Path, domain: str) -> dict[str, dict[str, float]]:
        assert arm.probe is not None
        return probe_scores(
            arm.probe,
            run,
            images=self.phantoms.test_images(domain),
            labels=self.phantoms.test_labels(domain),
            output=self.folder / "probes" / arm.name / f"{domain}.json",
            sampling=_sampling_of(arm),
            seed=self.seed,
            device=self.device,
        )

    def _timed(self, what: str, do: Callable[..., Result], *arguments: Any) -> Result:
        started = time.perf_counter()
        result = do(*arguments)
        self._on_step(f"seed {self.seed}: {what}: {time.perf_counter() - started:.1f} s")
        return result


def _sampling_of(arm: Arm) -> Sampling:
    return Sampling(timesteps=arm.timesteps, sampler=arm.sampler, steps=arm.sampling_steps)


def _by_person(scores: Scores) -> dict[str, dict[str, float]]:
    """Return each case's scores under the name that it has on every scanner; before `_` stands the scanner, if any."""
    return {
        case.case.partition("_")[2] or case.case: {metric: getattr(case.classes[0], metric) for metric in _METRICS}
        for case in scores.cases
    }
