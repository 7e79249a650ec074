"""Phantoms of a reproduction's seed, as datasets with plans and as test folders."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medsegdiff_cli.artifacts.cohorts import Blobs, Chests, Transfers
from medsegdiff_cli.paths import DATASET_JSON, Workspace, dataset_folder_name
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options
from medsegdiff_cli.workflows.phantoms import TEST_LIST, ChestCohort, write_blobs, write_chests
from medsegdiff_cli.workflows.plan import PlanRequest, plan_dataset

# The dataset that pretrainings see; so do the methods, but where a target has a dataset of its own, numbered from here.
DATASET = 1
_CHEST_PAIRS = {"images": "images/*.png", "labels": "labels/*.png", "label_map": ["1:lung"]}


@dataclass(frozen=True)
class SeedPhantoms:
    """Where the phantoms of a seed are.

    Attributes:
        source: images and labels as they were drawn.
    """

    workspace: Workspace
    source: Path
    cohort: Chests | Blobs | Transfers
    seed: int

    def dataset_of(self, domain: str) -> int:
        """Return the number of the dataset whose labels a model that is tested on a domain is trained on."""
        return DATASET + 1 + self.cohort.domains.index(domain) if isinstance(self.cohort, Transfers) else DATASET

    def test_images(self, domain: str) -> Path:
        """Return the folder of the test images of a domain."""
        return self.source / "tests" / domain / "images"

    def test_labels(self, domain: str) -> Path:
        """Return the folder of their labels, by the same names."""
        return self.source / "tests" / domain / "labels"

    def prepare(self, plan: dict[str, Any]) -> None:
        """Draw, convert and plan what is not there yet.

        Args:
            plan: content of `planning.overrides.PlanOverrides`.
        """
        cohort = self.cohort
        if isinstance(cohort, Chests):
            self._dataset(DATASET, "Chests", plan, self.source, lambda: self._draw_chests(cohort))
        elif isinstance(cohort, Blobs):
            self._dataset(DATASET, "Blobs", plan, self.source, lambda: self._draw_blobs(cohort))
        else:
            self._prepare_transfers(cohort, plan)

    def _prepare_transfers(self, cohort: Transfers, plan: dict[str, Any]) -> None:
        source = self.source / "pretraining"
        self._dataset(DATASET, "Source", plan, source, lambda: self._draw_training(source, cohort, cohort.source, 0))
        for domain, n_cases in cohort.targets.items():
            folder, counts, first = self.source / "targets" / domain, {domain: n_cases}, max(cohort.source.values())
            name = f"Target{domain.replace('-', '')}"
            draw = partial(self._draw_training, folder, cohort, counts, first)
            self._dataset(self.dataset_of(domain), name, plan, folder, draw)
        if not (self.source / TEST_LIST).is_file():
            write_chests(self.source, ChestCohort(train={}, test=cohort.test, shape=cohort.shape, seed=self.seed))

    def _dataset(
        self, number: int, name: str, plan: dict[str, Any], source: Path, draw: Callable[[], dict[str, Any]]
    ) -> None:
        """Draw, convert and plan one dataset where it is not there yet; `draw` returns the layout of what it drew."""
        folder_name = dataset_folder_name(number, name)
        dataset = self.workspace.raw / folder_name
        if not (dataset / DATASET_JSON).is_file():
            convert_dataset("folder", source, dataset, parse_options(**draw(), overwrite=True))
        if not self.workspace.plans_file(folder_name).is_file():
            plan_dataset(PlanRequest(dataset=str(number), workspace=self.workspace, overrides=plan))

    def _draw_training(
        self, folder: Path, cohort: Transfers, counts: dict[str, int], first_person: int
    ) -> dict[str, Any]:
        chests = ChestCohort(train=counts, shape=cohort.shape, seed=self.seed, first_train=first_person)
        write_chests(folder, chests)
        return _CHEST_PAIRS

    def _draw_chests(self, cohort: Chests) -> dict[str, Any]:
        chests = ChestCohort(
            train=cohort.labelled,
            unlabelled=cohort.unlabelled,
            test=cohort.test,
            shape=cohort.shape,
            seed=self.seed,
        )
        write_chests(self.source, chests)
        return {
            "images": "**/*.png",
            "labels": "**/labels/*.png",
            "label_map": ["1:lung"],
            "test_list": self.source / TEST_LIST,
        }

    def _draw_blobs(self, cohort: Blobs) -> dict[str, Any]:
        write_blobs(self.source, cohort.labelled, noise=cohort.noise, seed=self.seed, shape=cohort.shape)
        tests = self.test_images("blobs").parent
        write_blobs(tests, cohort.test, noise=cohort.noise, seed=cohort.test_seed, shape=cohort.shape)
        return {"images": "images/*.png", "labels": "labels/*.png", "label_map": ["1:target"]}
