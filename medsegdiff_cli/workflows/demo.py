"""`msd demo`: few labels and a second scanner, on phantoms: the whole chain, with the baseline beside.

The phantom, the scanners and the sizes were fixed once, on other seeds than the default one. What a seed gives is shown
as it is: who wins is the result, not the aim.
"""

import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.artifacts.document import read_json
from medsegdiff_cli.checking.check import check_dataset
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.paths import SAMPLES_PNG, Workspace, dataset_folder_name
from medsegdiff_cli.prediction.settings import OutputSettings
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options
from medsegdiff_cli.workflows.demo_page import DemoResults, DemoScores, write_demo_page
from medsegdiff_cli.workflows.devices import choose_device, choose_workers, torch_threads, usable_cores
from medsegdiff_cli.workflows.evaluate import EvaluateRequest, evaluate_predictions
from medsegdiff_cli.workflows.phantoms import TEST_LIST, ChestCohort, write_chests
from medsegdiff_cli.workflows.plan import PlanRequest, plan_dataset
from medsegdiff_cli.workflows.predict import PredictRequest, prepare_prediction, run_prediction
from medsegdiff_cli.workflows.pretraining import request_pretraining
from medsegdiff_cli.workflows.run_request import TrainRequest
from medsegdiff_cli.workflows.run_setup import set_up_run
from medsegdiff_cli.workflows.train import train_run
from medsegdiff_cli.workflows.train_method import train_method

_NAME, _MARKER, _PAGE = "Chests", "demo.json", "demo.html"
_METHOD, _BASELINE = "tedm", "supervised"
_LABELS = "1:lung"


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Size of the demonstration; the defaults take less than five minutes on two CPU cores.

    Attributes:
        labelled: cases with labels to learn from, all of the first scanner.
        unlabelled: cases without labels, of each scanner.
        test: cases set aside, of each scanner; the same persons on both.
        scanners: the labels' scanner, then the other one.
        size: pixels of an edge.
        pretraining, tedm, supervised: `--set` assignments of the trainings, beside those that make them comparable.
        workers: worker processes; None takes what suits the machine.
    """

    labelled: int = 3
    unlabelled: int = 200
    test: int = 20
    scanners: tuple[str, str] = ("A", "B")
    size: int = 64
    pretraining: Mapping[str, str] = field(default_factory=dict)
    tedm: Mapping[str, str] = field(default_factory=dict)
    supervised: Mapping[str, str] = field(default_factory=dict)
    workers: int | None = None

    @property
    def cohort(self) -> dict[str, Any]:
        """The cases, as `ChestCohort` counts them."""
        return {
            "train": {self.scanners[0]: self.labelled},
            "unlabelled": dict.fromkeys(self.scanners, self.unlabelled),
            "test": dict.fromkeys(self.scanners, self.test),
            "shape": (self.size, self.size),
        }


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """What the demonstration came to.

    Attributes:
        results: scores by domain and method, seconds, commands.
        page: one self-contained HTML file.
        samples: images that the pretraining generates, PNG.
    """

    folder: Path
    results: DemoResults
    page: Path
    samples: Path

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "folder": str(self.folder),
            "page": str(self.page),
            "samples": str(self.samples),
            "seed": self.results.seed,
            "seconds": {step: round(seconds, 2) for step, seconds in self.results.seconds.items()},
            "scores": [row.to_json() for row in self.results.rows()],
            "differences": list(self.results.differences()),
        }


def run_demo(
    folder: Path, seed: int = 0, say: Callable[[str], None] = print, settings: DemoSettings | None = None
) -> DemoReport:
    """Make phantoms, then convert, check, plan, pretrain, train, predict and evaluate them, and write the page.

    Each step is announced by the command that does the same. The same call again goes on where it stopped.

    Args:
        folder: empty, missing, or of an earlier demonstration with the same seed.

    Raises:
        UsageError: the folder holds something else.
    """
    settings = settings or DemoSettings()
    folder = Path(folder).expanduser().resolve()
    goes_on = _claim(folder, seed, settings)
    chain = _Chain(folder, seed, settings, say)
    say(f"$ cd {folder}; export MSD_WORKSPACE=workspace")
    with torch_threads(usable_cores() - chain.workers):
        chain.convert()
        chain.check()
        chain.plan()
        samples = chain.pretrain()
        models = {method: chain.train(method) for method in (_METHOD, _BASELINE)}
        scores = [chain.score(scanner, method, models[method]) for scanner in settings.scanners for method in models]
    results = DemoResults(
        scores=tuple(scores),
        references={_domain(scanner): chain.dataset for scanner in settings.scanners},
        shown_method=_METHOD,
        what_was_done=_what_was_done(settings, goes_on),
        seconds=chain.seconds,
        seed=seed,
        commands=tuple(chain.commands),
        samples=samples,
    )
    page = write_demo_page(results, folder / _PAGE)
    return DemoReport(folder=folder, results=results, page=page, samples=samples)


class _Chain:
    """The verbs, one after the other, through the functions that the command line calls."""

    def __init__(self, folder: Path, seed: int, settings: DemoSettings, say: Callable[[str], None]) -> None:
        self.folder, self.seed, self.settings, self.say = folder, seed, settings, say
        self.workspace = Workspace(folder / "workspace")
        self.dataset = self.workspace.raw / dataset_folder_name(1, _NAME)
        self.device = choose_device(None)
        self.workers = choose_workers(settings.workers, self.device)
        self.seconds: dict[str, float] = {}
        self.commands: list[str] = []

    def convert(self) -> None:
        """Write phantoms and turn them into a dataset."""
        images, labels = "**/*.png", "**/labels/*.png"
        command = (
            f"convert folder source --dataset 1 --name {_NAME} --images '{images}' --labels '{labels}' "
            f"--label-map {_LABELS} --test-list source/{TEST_LIST}"
        )
        with self._step("convert", command):
            source = write_chests(self.folder / "source", ChestCohort(**self.settings.cohort, seed=self.seed))
            options = parse_options(
                name=_NAME,
                images=images,
                labels=labels,
                label_map=[_LABELS],
                test_list=source / TEST_LIST,
                overwrite=True,
            )
            convert_dataset("folder", source, self.dataset, options)

    def check(self) -> None:
        """Stop when the dataset has errors."""
        with self._step("check", "check 1"):
            errors = [p for p in check_dataset(open_dataset(self.dataset)).problems if p.severity == "error"]
            if errors:
                raise InputDataError(f"{len(errors)} errors, first: {errors[0].message}", where=str(self.dataset))

    def plan(self) -> None:
        """Plan, and say why."""
        size = self.settings.size
        with self._step("plan", f"plan 1 --geometry resize --size {size} --scale tiny"):
            overrides = {"geometry": "resize", "size_voxels": (size,), "default_scale": "tiny"}
            request = PlanRequest(dataset="1", workspace=self.workspace, overwrite=True, overrides=overrides)
            report = plan_dataset(request)
        self.say("\n".join(f"    {sentence}" for sentence in report.plan.explanation[:4]))

    def pretrain(self) -> Path:
        """Learn from all images but the test's, without labels; return the picture of what was learnt."""
        with self._step("pretrain", f"pretrain diffusion 1 --fold all{_set(self.settings.pretraining)}"):
            settings = {**self._training(), "overrides": self.settings.pretraining}
            setup = set_up_run(request_pretraining("diffusion", None, "recommended", **settings))
            train_run(setup)
        return setup.folder / SAMPLES_PNG

    def train(self, method: str) -> Path:
        """Train on the labelled cases and return the run's folder (the parent of its folds)."""
        overrides = self._overrides(method)
        seed = f" --seed {self.seed}" if self.seed else ""
        with self._step(f"train {method}", f"train {method} 1 --fold all{_set(overrides)}{seed}"):
            request = TrainRequest(method=method, **self._training(), overrides=overrides, seed=self.seed)
            setup, _ = train_method(request)
        return setup.folder.parent

    def score(self, scanner: str, method: str, model: Path) -> DemoScores:
        """Predict a scanner's test cases and score them."""
        tests, output = Path("source", "tests", scanner), Path("predictions", f"{method}-{scanner}")
        seed = f" --seed {self.seed}" if self.seed else ""
        command = f"predict {model.name} {tests / 'images'} {output} --save-uncertainty{seed}"
        with self._step(f"predict {output.name}", command):
            request = PredictRequest(
                models=(model,),
                source=self.folder / tests / "images",
                output=self.folder / output,
                wanted=OutputSettings(uncertainty=True),
                seed=self.seed,
                workers=self.settings.workers,
            )
            run_prediction(prepare_prediction(request))
        with self._step(f"evaluate {output.name}", f"evaluate {output} {tests / 'labels'}"):
            reference = self.folder / tests / "labels"
            scores = evaluate_predictions(EvaluateRequest(predictions=self.folder / output, reference=reference))
        cases = {case.case: case.classes[0].dice for case in scores.cases}
        dice = np.array([math.nan if value is None else value for value in cases.values()])
        return DemoScores(
            domain=_domain(scanner), method=method, cases=tuple(cases), dice=dice, predictions=self.folder / output
        )

    def _training(self) -> dict[str, Any]:
        """Return what all trainings have in common; fold `all`: three labels are too few to set one aside."""
        device, workers = self.device, self.workers
        return {"dataset": "1", "workspace": self.workspace, "fold": "all", "device": device, "workers": workers}

    def _overrides(self, method: str) -> dict[str, str]:
        if method == _BASELINE:
            return {"network": "tedm", **self.settings.supervised}
        return {**{f"pretrain.{key}": value for key, value in self.settings.pretraining.items()}, **self.settings.tedm}

    @contextmanager
    def _step(self, name: str, command: str) -> Iterator[None]:
        self.say(f"$ msd {command}")
        self.commands.append(command)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.say(f"    {self.seconds[name]:.1f} s")


def _set(overrides: Mapping[str, str]) -> str:
    return "".join(f" --set {shlex.quote(f'{key}={value}')}" for key, value in overrides.items())


def _domain(scanner: str) -> str:
    return f"scanner {scanner}"


def _what_was_done(settings: DemoSettings, goes_on: bool) -> tuple[str, ...]:
    """Return the page's first paragraphs."""
    first, second = settings.scanners
    data = (
        f"Only {settings.labelled} cases have labels, all of scanner {first}. Beside them are {settings.unlabelled} "
        f"images without labels of scanner {first} and {settings.unlabelled} of scanner {second}, which is darker, "
        f"unevenly lit, less sharp and noisier. {settings.test} persons were set aside for testing, and imaged by both."
    )
    methods = (
        f"{_METHOD} learns to denoise all images without their labels, then a small classifier of its features from "
        f"the labelled cases. {_BASELINE} has the same labels and the same network, and learns from them alone. Both "
        "train at scale tiny, each with its own recommended augmentation, in minutes: "
        "long trainings on real images may come out otherwise."
    )
    again = "An earlier call of this demonstration had begun or finished some steps: their times are of the last call."
    return (data, methods, again) if goes_on else (data, methods)


def _claim(folder: Path, seed: int, settings: DemoSettings) -> bool:
    """Mark the folder as this demonstration's; return whether it was already.

    Raises:
        UsageError: it holds something else; nothing of anybody's is ever overwritten.
    """
    marker = folder / _MARKER
    content = {"seed": seed, **{key: value for key, value in asdict(settings).items() if key != "workers"}}
    content["scanners"] = list(settings.scanners)
    goes_on = marker.is_file()
    if goes_on:
        if read_json(marker) != content:
            raise UsageError(
                "the folder holds a demo of another seed or size", where=str(folder), fix="choose another --output"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("the folder is not empty", where=str(folder), fix="choose an empty one with --output")
    atomic.write_json(marker, content)
    return goes_on
