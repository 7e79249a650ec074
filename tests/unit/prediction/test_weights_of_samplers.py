"""Weights that are best with one sampler: made by validations, taken for predictions, carried by bundles."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from msd_shell import done
from toy_models import PLAN, RECIPE, write_run_folder

from medsegdiff_cli.artifacts.bundle import opened_bundle
from medsegdiff_cli.artifacts.checkpoint import read_checkpoint, write_checkpoint
from medsegdiff_cli.artifacts.fold_files import FoldFolder
from medsegdiff_cli.artifacts.plan import Plan
from medsegdiff_cli.artifacts.recipe import ResolvedRecipe
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.methods.mask_diffusion import MaskDiffusion
from medsegdiff_cli.prediction.model import load_fold, load_models, task_of
from medsegdiff_cli.workflows import fold_validation
from medsegdiff_cli.workflows import settled as settled_checks

CPU = torch.device("cpu")


def recipe(selection="best", method="recycling", **settings):
    network = {**RECIPE["method_settings"], **settings}
    training = {"steps": 1, "selection": selection, "validation_samplers": ["ddpm", "ddim", "dpm++", "ddim"]}
    return {**RECIPE, "method": method, "method_settings": network, "training": training}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two folds; `best` holds the weights of `last` plus 1, `best-ddim` plus 2."""
    return written(tmp_path_factory.mktemp("workspace"), "best", samplers=("ddim",))


def written(workspace: Path, selection: str, samplers: tuple[str, ...]) -> Path:
    folder = write_run_folder(workspace / "results", ("0", "1"), recipe=recipe(selection))
    for fold in ("fold_0", "fold_1"):
        checkpoints = folder / fold / "checkpoints"
        last = read_checkpoint(checkpoints / "last")
        for number, name in enumerate(("best", *(f"best-{sampler}" for sampler in samplers)), 1):
            tensors = {
                key: value + number if value.is_floating_point() else value for key, value in last.tensors.items()
            }
            write_checkpoint(checkpoints / name, tensors, {**last.state, "score": 0.5})
    return folder


@pytest.mark.parametrize(
    ("sampler", "checkpoint", "expected"),
    [
        (None, None, "best"),
        ("ddpm", None, "best"),  # the model's own has no others
        ("ddim", None, "best-ddim"),
        ("dpm++", None, "best"),
        ("ddim", "best", "best"),
        ("ddim", "last", "last"),
    ],
)
def test_a_sampler_predicts_with_the_weights_that_are_best_with_it(run, sampler, checkpoint, expected):
    models = load_models([run], checkpoint=checkpoint, sampler=sampler, device=CPU)
    assert [model.checkpoint for model in models] == [expected] * 2
    for model in models:
        state = read_checkpoint(model.folder / "checkpoints" / expected).part("model")
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.method.state_dict().items())


def test_a_run_that_selects_its_last_weights_predicts_with_these(tmp_path):
    folder = written(tmp_path, "last", samplers=("ddim",))
    assert load_fold(FoldFolder(folder / "fold_0"), None, "ddim").checkpoint == "last"


def test_bundles_carry_them_out_and_in_again(run, tmp_path):
    done("bundle", "export", run, tmp_path / "toy.msd", "--quiet")
    with opened_bundle(tmp_path / "toy.msd") as bundle:
        assert bundle.manifest.samplers == ("ddim",)
        assert bundle.folds()[0].checkpoints() == ["best", "best-ddim"]
    inside = load_models([tmp_path / "toy.msd"], sampler="ddim", device=CPU)
    assert [model.digest for model in inside] == [m.digest for m in load_models([run], sampler="ddim", device=CPU)]
    done("bundle", "import", tmp_path / "toy.msd", "--workspace", tmp_path / "w", "--quiet")
    (imported,) = (tmp_path / "w" / "results").glob("*/*")
    assert FoldFolder(imported / "fold_1").checkpoints() == ["best", "best-ddim"]
    assert [model.digest for model in load_models([imported], sampler="ddim", device=CPU)] == [m.digest for m in inside]


def test_a_bundle_carries_what_all_its_folds_have(tmp_path):
    folder = written(tmp_path, "best", samplers=("ddim", "dpm++"))
    for ending in (".json", ".safetensors"):
        (folder / "fold_1" / "checkpoints" / f"best-dpm++{ending}").unlink()
    done("bundle", "export", folder, tmp_path / "toy.msd", "--quiet")
    with opened_bundle(tmp_path / "toy.msd") as bundle:
        assert bundle.manifest.samplers == ("ddim",)
    done("bundle", "export", folder, tmp_path / "one.msd", "--folds", "0", "--quiet")
    with opened_bundle(tmp_path / "one.msd") as bundle:
        assert bundle.manifest.weights == ("best", "best-ddim", "best-dpm++")


def test_a_bundle_of_last_weights_carries_these_alone(tmp_path):
    folder = written(tmp_path, "last", samplers=("ddim",))
    done("bundle", "export", folder, tmp_path / "toy.msd", "--quiet")
    with opened_bundle(tmp_path / "toy.msd") as bundle:
        assert bundle.manifest.weights == ("last",)


def test_validation_predicts_with_each_sampler_once(monkeypatch):
    """The model's own first, with no wish at all; its Dice is the score."""
    settled, plan = ResolvedRecipe.model_validate(recipe(sampler="ddim")), Plan.model_validate(PLAN)
    label = np.zeros((4, 4, 4), np.uint8)
    label[:2] = 1
    store = SimpleNamespace(read=lambda case: SimpleNamespace(image=np.zeros((1, 4, 4, 4)), label=label))
    record = SimpleNamespace(val_cases=("a", "b"), precision="float32", seed=0)
    setup = SimpleNamespace(recipe=settled, plan=plan, record=record, slices=False)
    asked = []

    def predict(models, image, case, settings):
        asked.append((case, settings.sampling))
        wrong = {None: 0, "ddpm": 1, "dpm++": 2}[settings.sampling.sampler]
        scores = torch.zeros(3, 4, 4, 4)
        scores[1, :2], scores[0, 2:] = 1, 1
        scores[1, 2 : 2 + wrong], scores[0, 2 : 2 + wrong] = 1, 0
        return SimpleNamespace(scores=scores)

    monkeypatch.setattr(fold_validation, "predict_volume", predict)
    method = MaskDiffusion(
        Task(n_dims=3, in_channels=1, class_names=("background", "organ", "nodule")),
        MaskDiffusion.Settings.model_validate(settled.method_settings),
    )
    score = fold_validation.quick_validator(setup, store)(method)
    assert asked == [(case, Sampling(sampler=name)) for name in (None, "ddpm", "dpm++") for case in ("a", "b")]
    assert score.value == 1
    assert score.others == pytest.approx({"ddpm": 4 / 5, "dpm++": 2 / 3})
    settled = settled.model_copy(update={"training": settled.training.model_copy(update={"validation_samplers": ()})})
    assert fold_validation.other_samplers(settled) == ()


def test_a_method_without_steps_has_no_samplers_to_validate_with():
    settled, plan = ResolvedRecipe.model_validate(recipe(method="supervised")), Plan.model_validate(PLAN)
    with pytest.raises(UsageError, match="'supervised' does not sample"):
        settled_checks.refuse_contradictions(settled, plan, task_of(plan, "3d"), ("a",))
