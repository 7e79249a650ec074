"""Bundles of every kind of model: pixel classifiers carry their pretraining's network, old models still load."""

import json

import pytest
import torch
from toy_models import CASES, DATASET, RECIPE, RUN, write_run_folder

from medsegdiff_cli.artifacts.bundle import opened_bundle
from medsegdiff_cli.artifacts.run import read_run
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.paths import Workspace
from medsegdiff_cli.prediction.model import load_models
from medsegdiff_cli.workflows.bundle import ExportRequest, export_bundle, import_bundle, opened_parent

CPU = torch.device("cpu")
SMALL = RECIPE["method_settings"]


def exported(tmp_path, recipe=RECIPE, **request):
    workspace = Workspace(tmp_path / "home")
    run = write_run_folder(workspace.results, recipe=recipe)
    return export_bundle(ExportRequest(model=str(run), workspace=workspace, output=tmp_path / "x.msd", **request))


@pytest.mark.parametrize("method", ["tedm", "ledm", "step-probe"])
def test_a_method_that_started_from_a_pretraining_is_complete_in_its_bundle(tmp_path, method):
    settings = {**SMALL, "timesteps": [1, 5], "hidden": [4]}
    path, manifest = exported(tmp_path, {**RECIPE, "method": method, "method_settings": settings})
    (model,) = load_models([path], device=CPU)
    assert manifest.method == model.run.method == method
    assert any(name.startswith("network.") for name in model.method.state_dict())
    from_folder = load_models([tmp_path / "home" / "results" / DATASET / RUN], device=CPU)[0]
    for name, tensor in from_folder.method.state_dict().items():
        assert torch.equal(model.method.state_dict()[name], tensor)
    assert (model.digest, from_folder.bundle) == (from_folder.digest, "")


def test_a_pretraining_is_handed_on_but_predicts_nothing(tmp_path):
    path, manifest = exported(tmp_path, {**RECIPE, "method": "pretrain-diffusion"})
    assert manifest.kind == "pretraining"
    with pytest.raises(UsageError, match="is a pretraining, which cannot predict"):
        load_models([path], device=CPU)
    there = Workspace(tmp_path / "there")
    with opened_parent(str(path), there, "0") as folder:
        assert (folder / "checkpoints" / "last.safetensors").is_file()
    assert not folder.exists()
    assert list(there.root.iterdir()) == []


def test_numbers_of_cases_stay_and_names_go(tmp_path):
    path, manifest = exported(tmp_path)
    run, _ = import_bundle(path, Workspace(tmp_path / "there"))
    record, before = read_run(run / "fold_0"), read_run(tmp_path / "home" / "results" / DATASET / RUN / "fold_0")
    assert manifest.training_cases == {"0": 1}
    assert (record.train_cases, record.val_cases) == (("(train 1)",), ("(val 1)",))
    changed = {name for name in type(record).model_fields if getattr(record, name) != getattr(before, name)}
    assert changed == {"train_cases", "val_cases", "command", "dataset_path"}
    assert CASES[0].encode() not in path.read_bytes()


@pytest.mark.fault("F80")
def test_a_model_of_an_earlier_version_loads_without_what_was_added_since(tmp_path):
    run = write_run_folder(tmp_path) / "fold_0"
    record = json.loads((run / "run.json").read_text())
    for key in ("schema_version", "unlabelled_test_overlap", "parent", "precision", "versions", "weights_digest"):
        del record[key]
    (run / "run.json").write_text(json.dumps(record))
    (model,) = load_models([run], device=CPU)
    assert model.run.precision == "float32"


def test_words_that_could_forge_a_terminal_are_not_exported(tmp_path):
    with pytest.raises(UsageError, match="control characters"):
        exported(tmp_path, licence="free\x1b[2J")
    assert not (tmp_path / "x.msd").exists()


def test_a_bundle_opened_and_verified_changes_nothing(tmp_path):
    path, _ = exported(tmp_path)
    before = path.read_bytes()
    with opened_bundle(path) as bundle:
        bundle.verify()
    assert path.read_bytes() == before
