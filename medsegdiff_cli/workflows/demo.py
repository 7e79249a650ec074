"""`msd demo`: the whole chain on phantoms, from a folder of images to scored predictions."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.artifacts.document import read_json
from medsegdiff_cli.artifacts.scores import Scores, to_json
from medsegdiff_cli.checking.check import check_dataset
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.paths import Workspace, dataset_folder_name
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options
from medsegdiff_cli.workflows.devices import choose_device, choose_workers, torch_threads, usable_cores
from medsegdiff_cli.workflows.evaluate import EvaluateRequest, evaluate_predictions
from medsegdiff_cli.workflows.phantoms import CLASSES, PhantomSettings, write_phantoms
from medsegdiff_cli.workflows.plan import PlanRequest, plan_dataset
from medsegdiff_cli.workflows.predict import PredictRequest, prepare_prediction, run_prediction
from medsegdiff_cli.workflows.preview import draw_preview
from medsegdiff_cli.workflows.run_request import TrainRequest
from medsegdiff_cli.workflows.run_setup import set_up_run
from medsegdiff_cli.workflows.train import train_run

_NAME, _MARKER = "Phantoms", "demo.json"


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Size of the demonstration; the defaults take less than three minutes on two CPU cores.

    Attributes:
        labelled, test: cases to learn from (with validation), and cases set aside.
        overrides: `--set` assignments of the training.
        workers: worker processes; None takes what suits the machine.
    """

    shape: tuple[int, ...] = (32, 40, 36)
    labelled: int = 14
    test: int = 6
    overrides: dict[str, str] = field(default_factory=lambda: {"steps": "150", "learning_rate": "3e-3"})
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """What the demonstration came to.

    Attributes:
        scores: of the test cases.
        picture: predictions beside references, PNG.
        seconds: wall time of each step.
    """

    folder: Path
    scores: Scores
    picture: Path
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "folder": str(self.folder),
            "picture": str(self.picture),
            "seconds": {step: round(seconds, 2) for step, seconds in self.seconds.items()},
            "scores": to_json(self.scores),
        }


def run_demo(
    folder: Path, seed: int = 0, say: Callable[[str], None] = print, settings: DemoSettings | None = None
) -> DemoReport:
    """Make phantoms, then convert, check, plan, train, predict, evaluate and draw them.

    Each step is announced by the command that does the same. The same call again goes on where it stopped.

    Args:
        folder: empty, missing, or of an earlier demonstration with the same seed.

    Raises:
        UsageError: the folder holds something else.
    """
    settings = settings or DemoSettings()
    folder = Path(folder).expanduser().resolve()
    _claim(folder, seed, settings)
    chain = _Chain(folder, seed, settings, say)
    with torch_threads(usable_cores() - chain.workers):
        dataset = chain.convert()
        chain.check(dataset)
        chain.plan(dataset)
        run = chain.train(dataset)
        predictions = chain.predict(run, dataset)
        scores = chain.evaluate(predictions, dataset)
        picture = chain.draw(predictions)
    return DemoReport(folder=folder, scores=scores, picture=picture, seconds=chain.seconds)


class _Chain:
    """The verbs, one after the other, through the functions that the command line calls."""

    def __init__(self, folder: Path, seed: int, settings: DemoSettings, say: Callable[[str], None]) -> None:
        self.folder, self.seed, self.settings, self.say = folder, seed, settings, say
        self.workspace = Workspace(folder / "workspace")
        self.device = choose_device(None)
        self.workers = choose_workers(settings.workers, self.device)
        self.seconds: dict[str, float] = {}

    def convert(self) -> Path:
        """Write phantoms and turn them into a dataset; return its folder."""
        labels = [f"{value}:{name}" for value, name in CLASSES.items()]
        flags = " ".join(f"--label-map {label}" for label in labels)
        command = (
            f"convert folder {self._short('source')} --dataset 1 --name {_NAME} --images 'images/*.nii.gz' "
            f"--labels 'labels/*.nii.gz' {flags} --test-count {self.settings.test}"
        )
        with self._step("convert", command):
            source = write_phantoms(
                self.folder / "source",
                PhantomSettings(shape=self.settings.shape, seed=self.seed),
                labelled=self.settings.labelled + self.settings.test,
            )
            destination = self.workspace.raw / dataset_folder_name(1, _NAME)
            options = parse_options(
                images="images/*.nii.gz",
                labels="labels/*.nii.gz",
                label_map=labels,
                test_count=self.settings.test,
                overwrite=True,
            )
            convert_dataset("folder", source, destination, options)
        return destination

    def check(self, dataset: Path) -> None:
        """Stop when the dataset has errors."""
        with self._step("check", "check 1"):
            errors = [p for p in check_dataset(open_dataset(dataset)).problems if p.severity == "error"]
            if errors:
                raise InputDataError(f"{len(errors)} errors, first: {errors[0].message}", where=str(dataset))

    def plan(self, dataset: Path) -> None:
        """Plan, and say why."""
        with self._step("plan", "plan 1"):
            request = PlanRequest(dataset=str(dataset), workspace=self.workspace, workers=0, overwrite=True)
            report = plan_dataset(request)
        self.say("\n".join(f"    {sentence}" for sentence in report.plan.explanation[:4]))

    def train(self, dataset: Path) -> Path:
        """Train fold 0 of the baseline and return the run's folder (the parent of its folds)."""
        changes = " ".join(f"--set {key}={value}" for key, value in self.settings.overrides.items())
        with self._step("train", f"train supervised 1 --config 3d --fold 0 --scale tiny {changes}"):
            request = TrainRequest(
                method="supervised",
                dataset=str(dataset),
                workspace=self.workspace,
                config="3d",
                scale="tiny",
                overrides=self.settings.overrides,
                device=self.device,
                workers=self.workers,
            )
            setup = set_up_run(request)
            train_run(setup)
        return setup.folder.parent

    def predict(self, run: Path, dataset: Path) -> Path:
        """Predict the test images and return the folder of predictions."""
        output = self.folder / "predictions"
        images = f"{self._short('workspace/raw')}/{dataset.name}/imagesTs"
        with self._step("predict", f"predict {run.name} {images} {self._short('predictions')}"):
            request = PredictRequest(
                models=(run,), source=dataset / "imagesTs", output=output, workers=self.settings.workers
            )
            run_prediction(prepare_prediction(request))
        return output

    def evaluate(self, predictions: Path, dataset: Path) -> Scores:
        """Score the predictions."""
        with self._step("evaluate", f"evaluate {self._short('predictions')} 1"):
            return evaluate_predictions(EvaluateRequest(predictions=predictions, reference=dataset))

    def draw(self, predictions: Path) -> Path:
        """Draw predictions beside references."""
        with self._step("preview", f"preview {self._short('predictions')} --output {self._short('overlay.png')}"):
            return draw_preview(str(predictions), self.workspace, self.folder / "overlay.png", count=6)

    def _short(self, name: str) -> str:
        """Return a path below the folder as a person would type it."""
        path = self.folder / name
        relative = os.path.relpath(path)
        return relative if len(relative) < len(str(path)) else str(path)

    @contextmanager
    def _step(self, name: str, command: str) -> Iterator[None]:
        self.say(f"$ msd {command}")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.say(f"    {self.seconds[name]:.1f} s")


def _claim(folder: Path, seed: int, settings: DemoSettings) -> None:
    """Mark the folder as this demonstration's.

    Raises:
        UsageError: it holds something else; nothing of anybody's is ever overwritten.
    """
    marker = folder / _MARKER
    content = {"seed": seed, "shape": list(settings.shape), "labelled": settings.labelled, "test": settings.test}
    if marker.is_file():
        if read_json(marker) != content:
            raise UsageError(
                "the folder holds a demo of another seed or size", where=str(folder), fix="choose another --output"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("the folder is not empty", where=str(folder), fix="choose an empty one with --output")
    atomic.write_json(marker, content)
