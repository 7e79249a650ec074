"""Phantoms of a reproduction's seed, as a dataset with a plan and as test folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsegdiff_cli.artifacts.cohorts import Blobs, Chests
from medsegdiff_cli.paths import DATASET_JSON, Workspace, dataset_folder_name
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options
from medsegdiff_cli.workflows.phantoms import TEST_LIST, ChestCohort, write_blobs, write_chests
from medsegdiff_cli.workflows.plan import PlanRequest, plan_dataset

DATASET = 1


@dataclass(frozen=True)
class SeedPhantoms:
    """Where the phantoms of a seed are.

    Attributes:
        source: images and labels as they were drawn.
    """

    workspace: Workspace
    source: Path

    def test_images(self, domain: str) -> Path:
        """Return the folder of the test images of a domain."""
        return self.source / "tests" / domain / "images"

    def test_labels(self, domain: str) -> Path:
        """Return the folder of their labels, by the same names."""
        return self.source / "tests" / domain / "labels"

    def prepare(self, cohort: Chests | Blobs, plan: dict[str, Any], seed: int) -> None:
        """Draw, convert and plan what is not there yet.

        Args:
            plan: content of `planning.overrides.PlanOverrides`.
        """
        name = dataset_folder_name(DATASET, "Chests" if isinstance(cohort, Chests) else "Blobs")
        dataset = self.workspace.raw / name
        if not (dataset / DATASET_JSON).is_file():
            layout = self._draw_chests(cohort, seed) if isinstance(cohort, Chests) else self._draw_blobs(cohort, seed)
            convert_dataset("folder", self.source, dataset, parse_options(**layout, overwrite=True))
        if not self.workspace.plans_file(name).is_file():
            plan_dataset(PlanRequest(dataset=str(DATASET), workspace=self.workspace, overrides=plan))

    def _draw_chests(self, cohort: Chests, seed: int) -> dict[str, Any]:
        chests = ChestCohort(
            train=cohort.labelled,
            unlabelled=cohort.unlabelled,
            test=cohort.test,
            shape=cohort.shape,
            seed=seed,
        )
        write_chests(self.source, chests)
        return {
            "images": "**/*.png",
            "labels": "**/labels/*.png",
            "label_map": ["1:lung"],
            "test_list": self.source / TEST_LIST,
        }

    def _draw_blobs(self, cohort: Blobs, seed: int) -> dict[str, Any]:
        write_blobs(self.source, cohort.labelled, noise=cohort.noise, seed=seed, shape=cohort.shape)
        tests = self.test_images("blobs").parent
        write_blobs(tests, cohort.test, noise=cohort.noise, seed=cohort.test_seed, shape=cohort.shape)
        return {"images": "images/*.png", "labels": "labels/*.png", "label_map": ["1:target"]}
