"""Bundles: a model leaves a lab as one file, and predicts in another as it did at home."""

import json
import shutil
import zipfile
from hashlib import sha256

import pytest
from msd_shell import QUICK, done, images_only, msd, tree

pytestmark = pytest.mark.xdist_group("lab")
WORDS = ["--licence", "CC-BY-4.0", "--citation", "A. Author 2026", "--intended-use", "research on phantoms"]


@pytest.fixture(scope="module")
def bundle(lab, tmp_path_factory):
    """The lab's model as a file, where its workspace is not."""
    path = tmp_path_factory.mktemp("post") / "phantom.msd"
    done("bundle", "export", lab.run.parent, path, *WORDS)
    return path


@pytest.fixture(scope="module")
def at_home(lab, tmp_path_factory):
    """What the run folder predicts."""
    folder = tmp_path_factory.mktemp("home") / "out"
    done("predict", lab.run.parent, lab.images, folder, "--workers", 0, "--save-probabilities")
    return folder


def test_a_bundle_predicts_what_its_run_folder_predicts_and_says_where_from(lab, bundle, at_home, tmp_path):
    before = tree(bundle.parent)
    done("predict", bundle, lab.images, tmp_path / "out", "--workers", 0, "--save-probabilities")
    assert images_only(tmp_path / "out") == images_only(at_home)
    assert tree(bundle.parent) == before
    info = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert info["bundles"] == {"phantom.msd": sha256(bundle.read_bytes()).hexdigest()}
    assert info["models"] == ["phantom.msd/fold_0"]
    assert info["model_digests"] == json.loads((at_home / "prediction.json").read_text())["model_digests"]
    for sidecar in (tmp_path / "out").glob("case*.json"):
        assert json.loads(sidecar.read_text())["bundles"] == info["bundles"]


def test_a_bundle_and_its_run_are_one_model(lab, bundle, at_home, tmp_path):
    """The same command with the other form of the model finds its predictions done."""
    shutil.copytree(at_home, tmp_path / "out")
    words = [lab.images, tmp_path / "out", "--workers", 0, "--save-probabilities", "--json"]
    assert len(done("predict", bundle, *words).json["reused"]) == 2


def test_info_tells_everything_and_verifies_it(lab, bundle):
    facts = done("bundle", "info", bundle, "--json").json
    assert facts["digest"] == sha256(bundle.read_bytes()).hexdigest()
    assert (facts["licence"], facts["citation"], facts["intended_use"]) == tuple(WORDS[1::2])
    assert (facts["method"], facts["config"], facts["folds"], facts["kind"]) == ("supervised", "3d", ["0"], "model")
    assert facts["labels"] == {"background": 0, "organ": 1, "nodule": 2}
    assert (facts["format_version"], facts["dataset"]) == (1, "Dataset001_Phantom")
    with zipfile.ZipFile(bundle) as archive:
        for name, member in facts["members"].items():
            content = archive.read(name)
            assert (len(content), sha256(content).hexdigest()) == (member["bytes"], member["sha256"])
    text = done("bundle", "info", bundle).stdout
    for word in ("CC-BY-4.0", "research on phantoms", "organ: 1", "verified", "fold_0/run.json"):
        assert word in text


def test_a_bundle_holds_weights_and_settings_and_nothing_of_the_lab(lab, bundle):
    record = json.loads((lab.run / "run.json").read_text())
    with zipfile.ZipFile(bundle) as archive:
        assert {name.rpartition(".")[2] for name in archive.namelist()} == {"json", "yaml", "safetensors"}
        content = b"\0".join(archive.read(name) for name in archive.namelist())
    # In the processes of pytest-xdist the command line is no more than "-c".
    command = [record["command"]] if len(record["command"]) > 4 else []
    for private in (record["dataset_path"], *command, str(lab.workspace), *record["train_cases"]):
        assert len(private) > 4
        assert private.encode() not in content


def test_case_names_stay_when_asked_for(lab, tmp_path):
    done("bundle", "export", lab.run, tmp_path / "named.msd", "--keep-case-names")
    done("predict", tmp_path / "named.msd", lab.images, tmp_path / "out", "--workers", 0)
    info = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert info["trained_on"] == sorted(json.loads((lab.run / "run.json").read_text())["train_cases"])


def test_the_same_export_has_the_same_bytes(lab, bundle, tmp_path):
    done("bundle", "export", lab.run.parent, tmp_path / "again.msd", *WORDS)
    assert (tmp_path / "again.msd").read_bytes() == bundle.read_bytes()


def test_an_imported_model_is_found_by_name_listed_and_exported_again(lab, bundle, at_home, tmp_path):
    there = ["--workspace", tmp_path / "theirs"]
    run = done("bundle", "import", bundle, "--name", "from-the-lab", *there, "--json").json["run"]
    assert run == str(tmp_path / "theirs" / "results" / "Dataset001_Phantom" / "from-the-lab")
    (row,) = done("runs", *there, "--json").json["runs"]
    assert (row["run"], row["state"]) == ("from-the-lab", "finished")
    done("predict", "from-the-lab", lab.images, tmp_path / "out", "--workers", 0, "--save-probabilities", *there)
    assert images_only(tmp_path / "out") == images_only(at_home)
    facts = done("bundle", "export", "from-the-lab", tmp_path / "on.msd", *there, "--json").json
    assert (facts["name"], facts["licence"], facts["citation"]) == ("from-the-lab", "CC-BY-4.0", "A. Author 2026")


def test_training_goes_on_from_a_bundle(lab, bundle):
    words = ["--workspace", lab.workspace, *QUICK, "--config", "3d", "--set", "steps=1", "--name", "bundled"]
    outcome = done("finetune", "supervised", 1, "--from", bundle, *words)
    assert "100.0%" in outcome.stderr
    (run,) = (lab.workspace / "results" / "Dataset001_Phantom").glob("*__bundled/fold_0")
    parent = json.loads((run / "run.json").read_text())["parent"]
    assert parent["run"] == f"{lab.run.parent.name}/fold_0"
    assert parent["weights_sha256"] == sha256((lab.run / "checkpoints" / "last.safetensors").read_bytes()).hexdigest()
    assert not list(lab.workspace.glob(".unpacked-*"))


def test_several_folds_are_one_bundle(lab, tmp_path):
    run = tmp_path / "results" / "Dataset001_Phantom" / "supervised__3d"
    for fold in ("0", "1"):
        shutil.copytree(lab.run, run / f"fold_{fold}")
    record = json.loads((run / "fold_1" / "run.json").read_text())
    (run / "fold_1" / "run.json").write_text(json.dumps({**record, "fold": "1"}))
    facts = done("bundle", "export", run, tmp_path / "two.msd", "--json").json
    assert facts["folds"] == ["0", "1"]
    one = done("bundle", "export", run, tmp_path / "one.msd", "--folds", "1", "--json").json
    assert one["folds"] == ["1"]
    words = [lab.images, tmp_path / "out", "--workers", 0]
    assert msd("predict", tmp_path / "two.msd", *words, "--folds", "2").code == 2
    done("predict", tmp_path / "two.msd", *words)
    info = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert info["models"] == ["two.msd/fold_0", "two.msd/fold_1"]


def test_an_export_does_not_replace_a_file_and_needs_a_finished_run(lab, bundle, tmp_path):
    before = bundle.read_bytes()
    assert msd("bundle", "export", lab.run, bundle).code == 2
    assert msd("bundle", "export", lab.run, tmp_path / "model.zip").code == 2
    assert msd("bundle", "export", bundle, tmp_path / "copy.msd").code == 2
    assert msd("bundle", "export", "no-such-run", tmp_path / "x.msd", "--workspace", lab.workspace).code == 2
    run = shutil.copytree(lab.run, tmp_path / "supervised__3d" / "fold_0")
    record = json.loads((run / "run.json").read_text())
    record["stages"][0]["status"] = "running"
    (run / "run.json").write_text(json.dumps(record))
    outcome = msd("bundle", "export", run, tmp_path / "early.msd")
    assert (outcome.code, "not finished" in outcome.stderr) == (2, True)
    assert bundle.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["supervised__3d"]
