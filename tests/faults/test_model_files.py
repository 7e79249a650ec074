"""Models from anywhere: pickles, damaged or foreign weights, hostile documents, files of a newer msd.

Every refusal is looked at from the command line: the exit code, a message that names the cause, no traceback, nothing
written, nothing executed.
"""

import errno
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from msd_shell import msd
from toy_models import DATASET, RUN, forge, make_shop, refused, write_run_folder

from medsegdiff_cli import atomic

fault = pytest.mark.fault


class Trap:
    """A pickle that leaves a file behind when anybody loads it."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def fold(shop, tmp_path):
    """A copy of a fold's folder, to be spoilt."""
    return Path(shutil.copytree(shop / "workspace" / "results" / DATASET / RUN / "fold_0", tmp_path / RUN / "fold_0"))


# F45, F62: the disk, and the number of open files


@fault("F45", "F62")
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("name", ["run.json", "recipe.yaml", "plan.yaml", "last.json", "last.safetensors", "toy.msd"])
def test_a_model_that_the_machine_cannot_read_is_no_damaged_model(shop, fold, tmp_path, monkeypatch, name, number):
    model = shop / "toy.msd" if name == "toy.msd" else fold
    opened = Path.open

    def fail(path, *args, **settings):
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *args, **settings)

    monkeypatch.setattr(Path, "open", fail)
    words = ["predict", model, shop / "images", tmp_path / "out", "--workers", 0, "--device", "cpu"]
    result = msd(*words)
    assert result.code == 4, result.stderr
    assert f"reading failed ({os.strerror(number)})" in result.stderr
    assert name in result.stderr
    assert ("ulimit -n" in result.stderr) == (number == errno.EMFILE)
    assert not (tmp_path / "out").exists()


# F67: pickles


@fault("F67")
@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".pkl", ".PT", ".bin"])
def test_a_pickle_is_refused_by_its_name_and_never_opened(shop, tmp_path, ending):
    model = tmp_path / f"model{ending}"
    model.write_bytes(pickle.dumps(Trap(tmp_path / "canary")))
    refused(6, "is a pickle", shop, tmp_path, model)
    for words in (["bundle", "export", model], ["finetune", "supervised", 1, "--from", model]):
        assert msd(*words, "--workspace", tmp_path / "workspace").code == 6
    for words in (["bundle", "info", model], ["bundle", "import", model]):
        assert msd(*words).code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [model.name]


@fault("F67")
@pytest.mark.parametrize("form", ["pickle", "torch zip"])
@pytest.mark.parametrize("place", ["bundle", "weights", "header"])
def test_a_pickle_under_another_name_is_refused_and_does_not_run(shop, tmp_path, fold, form, place):
    content = io.BytesIO()
    if form == "pickle":
        pickle.dump(Trap(tmp_path / "canary"), content)
    else:
        torch.save({"weights": Trap(tmp_path / "canary")}, content)
    file = {
        "bundle": tmp_path / "toy.msd",
        "weights": fold / "checkpoints" / "last.safetensors",
        "header": fold / "checkpoints" / "last.json",
    }[place]
    file.write_bytes(content.getvalue())
    refused(6, "", shop, tmp_path, file if place == "bundle" else fold)
    assert not (tmp_path / "canary").exists()


@fault("F67")
def test_the_trap_of_these_tests_snaps(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "canary")))
    assert (tmp_path / "canary").is_dir()


# F68 to F72: weights


def with_header(path, header, data=b""):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@fault("F68", "F69")
@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "too few"),
        (b"{" * 3, "header"),
        ({"model.x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, "4398046511104 bytes"),
        (b'{"__metadata__": {"x": "' + b"y" * (5 << 20) + b'"}}', "at most 4194304"),
    ],
)
def test_weights_with_an_impossible_header_are_code_6(shop, tmp_path, fold, header, message):
    weights = fold / "checkpoints" / "last.safetensors"
    with_header(weights, header)
    record = json.loads(weights.with_suffix(".json").read_text())
    # The digest fits: whoever forges the weights forges it, too.
    record["sha256"] = atomic.digest_of_file(weights)
    weights.with_suffix(".json").write_text(json.dumps(record))
    refused(6, message, shop, tmp_path, fold)


def spoilt(tmp_path, change):
    return write_run_folder(tmp_path / "results", change=change)


@fault("F70")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, name: w.update({name: torch.zeros(3, 3)}), "is float32 of shape 3x3, the recorded settings need"),
        (lambda w, name: w.update({name: w[name].double()}), "is float64 of shape"),
        (lambda w, name: w.update({name: w[name].half()}), "is float16 of shape"),
        (lambda w, name: w.pop(name), "is missing"),
        (lambda w, name: w.update({"model.spy": torch.zeros(1)}), "'spy' is not part of the network"),
    ],
)
def test_a_tensor_that_does_not_fit_is_code_6_and_named(shop, tmp_path, change, message):
    names = []

    def spoil(weights):
        names.append(next(name for name, tensor in weights.items() if tensor.ndim > 1))
        change(weights, names[0])

    run = spoilt(tmp_path, spoil)
    refused(6, message, shop, tmp_path, run)
    if "spy" not in message:
        refused(6, names[0].removeprefix("model."), shop, tmp_path, run)


@fault("F70")
def test_a_recipe_cannot_ask_for_more_memory_than_its_weights_take(shop, tmp_path, fold):
    recipe = yaml.safe_load((fold / "recipe.yaml").read_text())
    recipe["method_settings"]["model_channels"] = 1 << 20  # a network of terabytes
    forge(fold, recipe=recipe)
    refused(6, "the recorded settings need", shop, tmp_path, fold)


@fault("F71")
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_code_6_and_named(shop, tmp_path, number):
    def spoil(weights):
        name = next(iter(sorted(weights)))
        weights[name] = weights[name].clone()
        weights[name].view(-1)[-1] = number

    refused(6, "holds numbers that are not finite", shop, tmp_path, spoilt(tmp_path, spoil))


@fault("F72")
def test_weights_of_another_run_are_code_6(shop, tmp_path, fold):
    other = shop / "workspace" / "results" / DATASET / RUN / "fold_1" / "checkpoints"
    shutil.copy(other / "last.safetensors", fold / "checkpoints")
    refused(6, "do not match their recorded sha256", shop, tmp_path, fold)
    shutil.copy(other / "last.json", fold / "checkpoints")  # a whole checkpoint, of another fold
    refused(6, "not those of run.json", shop, tmp_path, fold)


# F77, F78, F80: documents


@fault("F77")
@pytest.mark.parametrize("file", ["run.json", "plan.yaml", "recipe.yaml", "checkpoints/last.json"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": 1, "a": 2}', b'{"a": ' + b"9" * 9999 + b"}", b"\xff\xfe{"])
def test_hostile_documents_of_a_model_are_code_6(shop, tmp_path, fold, file, content):
    (fold / file).write_bytes(content)
    refused(6, "not valid", shop, tmp_path, fold)


@fault("F78")
@pytest.mark.parametrize(
    "method", ["os:system", "os.system", "medsegdiff_cli.methods.supervised:Supervised", "__import__('os')", "{{7*7}}"]
)
def test_a_recipe_cannot_name_code_as_its_method(shop, tmp_path, fold, method):
    forge(fold, recipe={**yaml.safe_load((fold / "recipe.yaml").read_text()), "method": method})
    refused(2, "no method", shop, tmp_path, fold)


@fault("F78")
@pytest.mark.parametrize(
    "settings",
    [
        {"network": "torch.nn.Linear"},
        {"network": "os:system"},
        {"__class__": "os.system"},
        {"_target_": "subprocess.run"},
        {"__import__": "os"},
    ],
)
def test_a_recipe_cannot_name_code_as_its_network(shop, tmp_path, fold, settings):
    recipe = yaml.safe_load((fold / "recipe.yaml").read_text())
    recipe["method_settings"] |= settings
    forge(fold, recipe=recipe)
    refused(2, next(iter(settings)), shop, tmp_path, fold)


@fault("F78")
@pytest.mark.parametrize("place", ["plan", "recipe"])
def test_plans_and_recipes_have_no_key_for_code(shop, tmp_path, fold, place):
    content = yaml.safe_load((fold / f"{place}.yaml").read_text())
    forge(fold, **{place: {**content, "transforms": "os.system"}})
    refused(6, "unknown key 'transforms'", shop, tmp_path, fold)


@fault("F80")
@pytest.mark.parametrize("file", ["run.json", "plan.yaml", "recipe.yaml", "checkpoints/last.json"])
def test_a_model_of_a_newer_format_is_code_2_and_says_upgrade(shop, tmp_path, fold, file):
    content = yaml.safe_load((fold / file).read_text())
    key = "format_version" if "format_version" in content else "schema_version"
    (fold / file).write_text(json.dumps({**content, key: content[key] + 1, "of_the_future": True}))
    refused(2, "upgrade msd", shop, tmp_path, fold)


# F100: how to sample


@fault("F100")
@pytest.mark.parametrize(
    "words", [["--timesteps", "1,10"], ["--sampler", "ddim"], ["--schedule", "cosine"], ["--set", "schedule=linear"]]
)
def test_what_a_model_does_not_have_cannot_be_asked_of_it(shop, tmp_path, words):
    result = msd("predict", shop / "toy.msd", shop / "images", tmp_path / "out", *words)
    assert result.code == 2
    assert words[0] in result.stderr
    assert not (tmp_path / "out").exists()
