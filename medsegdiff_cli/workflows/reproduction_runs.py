"""One seed of a reproduction: its phantoms, one pretraining, the classifiers that share it, their predictions."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from medsegdiff_cli.artifacts.experiment import Arm, Declaration
from medsegdiff_cli.artifacts.scores import Scores, read_scores
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.paths import DATASET_JSON, PLANS_NAME, SUMMARY_JSON, Workspace, dataset_folder_name
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options
from medsegdiff_cli.workflows.evaluate import EvaluateRequest, evaluate_predictions
from medsegdiff_cli.workflows.phantoms import TEST_LIST, ChestCohort, write_chests
from medsegdiff_cli.workflows.plan import PlanRequest, plan_dataset
from medsegdiff_cli.workflows.predict import PredictRequest, prepare_prediction, run_prediction
from medsegdiff_cli.workflows.pretraining import request_pretraining
from medsegdiff_cli.workflows.run_request import TrainRequest
from medsegdiff_cli.workflows.run_setup import RunSetup, set_up_run
from medsegdiff_cli.workflows.train import train_run
from medsegdiff_cli.workflows.train_method import is_finished

_DATASET, _NAME, _CLASS = 1, "Chests", "1:lung"
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
        self.source = folder / "phantoms"
        self._on_step = on_step

    @staticmethod
    def steps(needed: Mapping[Arm, tuple[str, ...]]) -> int:
        """Return how many steps a seed takes: data, pretraining, trainings, sets of predictions."""
        return 2 + len({arm.run for arm in needed}) + sum(len(domains) for domains in needed.values())

    def scores(self, needed: Mapping[Arm, tuple[str, ...]]) -> Values:
        """Return (seed, arm's name, domain) to test person to metric to value.

        Args:
            needed: arms with the domains that they are tested on.
        """
        self._timed("phantoms, dataset and plan", self._prepare_data)
        pretraining = self._timed("pretraining", self._pretrain)
        trained: dict[str, Path] = {}
        values: Values = {}
        for arm, domains in needed.items():
            if arm.run not in trained:
                trained[arm.run] = self._timed(f"training {arm.run}", self._train, arm, pretraining)
            for domain in domains:
                scores = self._timed(
                    f"predicting {domain} with {arm.name}", self._predict, arm, trained[arm.run], domain
                )
                values[self.seed, arm.name, domain] = _by_person(scores)
        return values

    def _prepare_data(self) -> None:
        cohort = self.declaration.cohort
        dataset = self.workspace.raw / dataset_folder_name(_DATASET, _NAME)
        if not (dataset / DATASET_JSON).is_file():
            write_chests(
                self.source,
                ChestCohort(
                    train=cohort.labelled,
                    unlabelled=cohort.unlabelled,
                    test=cohort.test,
                    shape=cohort.shape,
                    seed=self.seed,
                ),
            )
            options = parse_options(
                images="**/*.png",
                labels="**/labels/*.png",
                label_map=[_CLASS],
                test_list=self.source / TEST_LIST,
                overwrite=True,
            )
            convert_dataset("folder", self.source, dataset, options)
        if not self.workspace.plans_file(dataset.name).is_file():
            plan_dataset(PlanRequest(dataset=str(_DATASET), workspace=self.workspace, overrides=self.declaration.plan))

    def _pretrain(self) -> Path:
        budget = self.declaration.pretraining
        request = request_pretraining(
            self.declaration.objective,
            None,
            budget.preset,
            overrides=budget.settings_of(self.declaration.objective),
            **self._shared_settings(),
        )
        return self._finish(set_up_run(request))

    def _train(self, arm: Arm, pretraining: Path) -> Path:
        budget = self.declaration.heads
        overrides = budget.settings_of(arm.method)
        if arm.step is not None:
            overrides["timesteps"] = json.dumps([arm.step])
        request = TrainRequest(
            method=arm.method,
            preset=budget.preset,
            cases=arm.labels,
            parent=pretraining,
            overrides=overrides,
            **self._shared_settings(),
        )
        return self._finish(set_up_run(request))

    def _shared_settings(self) -> dict[str, Any]:
        """Return what is the same in all trainings: all labelled cases may be drawn from, none validates."""
        return {
            "dataset": str(_DATASET),
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

    def _predict(self, arm: Arm, run: Path, domain: str) -> Scores:
        output = self.folder / "predictions" / arm.name / domain
        tests = self.source / "tests" / domain
        request = PredictRequest(
            models=(run,),
            source=tests / "images",
            output=output,
            sampling=Sampling(timesteps=arm.timesteps),
            seed=self.seed,
            device=str(self.device),
            workers=0,
        )
        report = run_prediction(prepare_prediction(request))
        if not report.written and (output / SUMMARY_JSON).is_file():
            return read_scores(output)
        return evaluate_predictions(EvaluateRequest(predictions=output, reference=tests / "labels"))

    def _timed(self, what: str, do: Callable[..., Result], *arguments: Any) -> Result:
        started = time.perf_counter()
        result = do(*arguments)
        self._on_step(f"seed {self.seed}: {what}: {time.perf_counter() - started:.1f} s")
        return result


def _by_person(scores: Scores) -> dict[str, dict[str, float]]:
    """Return each case's scores under the name that it has on every scanner."""
    return {
        case.case.partition("_")[2]: {metric: getattr(case.classes[0], metric) for metric in _METRICS}
        for case in scores.cases
    }
