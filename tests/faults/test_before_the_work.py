"""What the commands do before they work: places that cannot be written, are too full, hold something else or are taken.

Also what they take for done: content decides, not the presence of a file, its size or its time.
"""

import errno
import gzip
import json
import os
import resource
import shutil
import struct
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from failing_writes import run_child
from msd_shell import done, msd, tree
from toy_models import DATASET, RUN, write_run_folder
from typer.testing import CliRunner

from medsegdiff_cli import atomic, locks
from medsegdiff_cli.cli.app import app
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image, write_label
from medsegdiff_cli.locks import locked
from medsegdiff_cli.paths import EVALUATION_LOCK, LOCK
from medsegdiff_cli.planning import memory
from medsegdiff_cli.prediction import case_steps
from medsegdiff_cli.workflows import plan, run_setup, train

fault = pytest.mark.fault
SHAPE = (8, 8, 8)
QUICK = "--set steps=2 --set model_channels=8 --set channel_mult=[1] --set validate_every_steps=0 --workers 0".split()


def refused(code, message, *words):
    result = msd(*words)
    assert result.code == code, result.stderr
    assert message in result.stderr
    assert "to do:" in result.stderr
    return result


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A model that nobody trained, two images, and a planned dataset of the same; tests must not change them."""
    folder = tmp_path_factory.mktemp("shop")
    geometry, random = Geometry.plain(SHAPE, (1.0, 1.0, 1.0)), np.random.default_rng(0)
    dataset = folder / "workspace" / "raw" / "Dataset001_Fault"
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 2:6, 2:5] = 1
    for index in range(3):
        image = Image(array=random.normal(size=(1, *SHAPE)).astype(np.float32), geometry=geometry)
        write_image(dataset / "imagesTr" / f"case{index}_0000.nii.gz", image)
        write_label(dataset / "labelsTr" / f"case{index}.nii.gz", label, geometry)
        if index < 2:
            write_image(folder / "images" / f"case{index}.nii.gz", image)
            write_label(folder / "labels" / f"case{index}.nii.gz", label, geometry)
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "numTraining": 3}
    atomic.write_json(dataset / "dataset.json", {**content, "file_ending": ".nii.gz"})
    write_run_folder(folder / "results")
    with pytest.MonkeyPatch.context() as patch:
        for room in (plan, run_setup):
            patch.setattr(room, "measure_training", lambda *_: 20_000_000)
        done("plan", 1, "--scale", "tiny", "--workers", 0, "--workspace", folder / "workspace", "--quiet")
        yield folder


def predict(shop, output, *words, images=None):
    model = shop / "results" / DATASET / RUN
    return ("predict", model, images or shop / "images", output, "--workers", 0, "--device", "cpu", *words)


@pytest.fixture
def full_disk(monkeypatch):
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))


@pytest.fixture
def no_rights(monkeypatch):
    """Nothing can be made below a folder called `closed`; a superuser, whom rights do not stop, sees the same."""
    real = os.open

    def fail(path, flags, *mode):
        if flags & os.O_CREAT and "closed" in Path(path).resolve().parts:
            raise OSError(errno.EACCES, "Permission denied")
        return real(path, flags, *mode)

    monkeypatch.setattr(locks.os, "open", fail)


@pytest.fixture
def no_work(monkeypatch):
    """Fail the test when images are read, or steps trained."""
    monkeypatch.setattr(case_steps, "read_channels", lambda *_, **__: pytest.fail("an image was read"))
    monkeypatch.setattr(train, "train_stage", lambda *_, **__: pytest.fail("a step was made"))


@fault("F47")
def test_a_folder_that_cannot_be_written_is_refused_before_any_image_is_read(shop, tmp_path, no_rights, no_work):
    refused(4, "cannot write (Permission denied)", *predict(shop, tmp_path / "closed"))
    assert not (tmp_path / "closed").exists()
    workspace = shutil.copytree(shop / "workspace", tmp_path / "workspace")
    (tmp_path / "closed").mkdir()
    (workspace / "results").symlink_to(tmp_path / "closed")
    words = ["train", "supervised", 1, "--config", "3d", *QUICK, "--workspace", workspace]
    refused(4, "cannot write (Permission denied)", *words)
    assert list((tmp_path / "closed").iterdir()) == []


@fault("F45")
@pytest.mark.parametrize("place", ["images", "out"])
def test_a_file_that_the_disk_cannot_give_is_named(shop, tmp_path, monkeypatch, place):
    """An image, and a prediction that is there and whose content is compared with its sidecar."""
    real, output = Path.open, tmp_path / "out"
    if place == "out":
        done(*predict(shop, output))
    before = tree(tmp_path)

    def fail(path, *settings, **more):
        if path.name == "case0.nii.gz" and path.parent.name == place:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *settings, **more)

    monkeypatch.setattr(Path, "open", fail)
    result = refused(4, "(Input/output error)", *predict(shop, output))
    assert f"{place}/case0.nii.gz\n" in result.stderr
    monkeypatch.undo()
    assert tree(tmp_path) == before


@fault("F60")
def test_too_little_memory_is_refused_before_any_image_is_read(shop, tmp_path, monkeypatch, no_work):
    monkeypatch.setattr(memory, "available_memory", lambda: (1000, "the limit of the address space (ulimit -v)"))
    result = refused(4, "the smallest case is forecast to need ", *predict(shop, tmp_path / "out"))
    assert "but only 1000 B can be had\n  where: the limit of the address space (ulimit -v)" in result.stderr
    assert not (tmp_path / "out").exists()
    workspace = shutil.copytree(shop / "workspace", tmp_path / "workspace")
    words = ["train", "supervised", 1, "--config", "3d", *QUICK, "--device", "cpu", "--workspace", workspace]
    refused(4, "a training step is forecast to need 19 MB of memory", *words)
    assert tree(workspace) == tree(shop / "workspace")


@fault("F60")
def test_a_header_that_claims_more_than_its_file_can_hold_does_not_speak_for_the_others(shop, tmp_path):
    images = shutil.copytree(shop / "images", tmp_path / "images")
    header = bytearray(gzip.decompress((images / "case0.nii.gz").read_bytes()))
    struct.pack_into("<3h", header, 42, 32000, 32000, 32000)
    (images / "bomb.nii.gz").write_bytes(gzip.compress(bytes(header)))
    result = msd(*predict(shop, tmp_path / "out", images=images))
    assert result.code == 5, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["case0.nii.gz", "case1.nii.gz"]


@fault("F60")
def test_a_limit_of_the_address_space_is_seen_and_memory_that_is_denied_later_is_exit_code_4(shop, tmp_path):
    """In a child that may have no more than it has, and a little: what was read before the limit was set stays."""
    words = predict(shop, tmp_path / "out")
    done(*predict(shop, tmp_path / "warm"))  # what is imported on the way would need memory, too

    def limit(room):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def small():
        limit(2000)
        return CliRunner().invoke(app, [str(word) for word in words]).exit_code

    def denied():
        big = Image(array=np.zeros((1, 400, 400, 400), np.uint8), geometry=Geometry.plain((400,) * 3, (1.0, 1.0, 1.0)))
        limit(128 << 20)
        case_steps.read_channels = lambda *_, **__: big
        outcome = CliRunner().invoke(app, [str(word) for word in words])
        print(outcome.stderr)
        return outcome.exit_code

    (tmp_path / "notes").mkdir()
    assert run_child(small, tmp_path / "notes").code == 4
    child = run_child(denied, tmp_path / "notes")
    assert child.code == 4, child.words
    assert "the memory does not suffice" in child.words
    assert "case 'case0'" in child.words
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["prediction.json"]


@fault("F48")
def test_too_little_space_is_refused_before_any_image_is_read(shop, tmp_path, full_disk, no_work):
    maps = ["--save-probabilities", "--save-uncertainty"]
    refused(4, "the predictions will take about", *predict(shop, tmp_path / "out", *maps))
    assert not (tmp_path / "out").exists()
    workspace = ["--workspace", shutil.copytree(shop / "workspace", tmp_path / "workspace")]
    before = tree(tmp_path / "workspace")
    refused(4, "the preprocessed cases will take about", "preprocess", 1, "--config", "3d", *workspace)
    refused(4, "the training will take about", "train", "supervised", 1, "--config", "3d", *QUICK, *workspace)
    source = ["convert", "folder", shop, "--images", "images/*", "--labels", "labels/*", "--label-map", "1:organ"]
    refused(4, "the dataset will take about", *source, "--dataset", 9, "--name", "New", *workspace)
    assert tree(tmp_path / "workspace") == before


@fault("F49")
def test_an_output_that_is_the_inputs_folder_is_refused_by_any_name(shop, tmp_path):
    images = shutil.copytree(shop / "images", tmp_path / "images")
    (tmp_path / "link").symlink_to(images)
    (tmp_path / "images.txt").write_text(str(images / "case0.nii.gz"))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "case0.nii.gz").symlink_to(images / "case0.nii.gz")
    before = tree(images)
    for source in (images, tmp_path / "link", images / "case0.nii.gz", tmp_path / "images.txt", tmp_path / "linked"):
        refused(2, "OUTPUT is the folder of the input images", *predict(shop, images, images=source))
    for output in (tmp_path / "link", images / ".." / "images"):
        refused(2, "OUTPUT is the folder of the input images", *predict(shop, output, images=images))
    refused(2, "OUTPUT is the folder", *predict(shop, tmp_path / "linked", images=tmp_path / "linked"))
    assert tree(images) == before


@fault("F49")
def test_a_destination_that_is_the_source_is_refused_by_any_name(shop, tmp_path):
    source = tmp_path / "raw" / "Dataset009_New"
    shutil.copytree(shop / "images", source / "images")
    (tmp_path / "link").symlink_to(source)
    words = ["--images", "images/*", "--dataset", 9, "--name", "New", "--workspace", tmp_path, "--overwrite"]
    for name in (source, tmp_path / "link"):
        refused(2, "the destination contains the source", "convert", "folder", name, *words)
    assert tree(source) == {f"images/{name}": content for name, content in tree(shop / "images").items()}


@fault("F50")
def test_images_that_are_no_predictions_are_not_written_over(shop, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "case1.nii.gz").write_bytes(b"drawn by hand")
    (output / "notes.txt").write_text("mine")
    refused(2, "OUTPUT holds a file 'case1.nii.gz' that is no prediction", *predict(shop, output))
    assert tree(output) == {"case1.nii.gz": b"drawn by hand", "notes.txt": b"mine"}
    done(*predict(shop, output, "--overwrite"))
    assert (output / "case1.json").is_file()


@fault("F50")
def test_what_was_predicted_otherwise_is_only_replaced_when_asked(shop, tmp_path):
    done(*predict(shop, tmp_path))
    before = tree(tmp_path)
    refused(2, "made with other settings", *predict(shop, tmp_path, "--step-size", 0.25))
    assert tree(tmp_path) == before
    assert json.loads(done(*predict(shop, tmp_path, "--json")).stdout)["reused"] == ["case0", "case1"]
    assert tree(tmp_path) == before
    done(*predict(shop, tmp_path, "--step-size", 0.25, "--overwrite"))
    assert tree(tmp_path)["prediction.json"] != before["prediction.json"]


@fault("F50", "F51", "F54")
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_result_that_was_changed_is_computed_again_whatever_its_size_and_time(shop, tmp_path, damage):
    done(*predict(shop, tmp_path, "--save-uncertainty"))
    before = tree(tmp_path)
    for name in ("case0.nii.gz", "uncertainty/case1_entropy.nii.gz"):
        path, content = tmp_path / name, before[name]
        time = path.stat().st_mtime_ns
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:-1] + b"?")
            os.utime(path, ns=(time, time))
    result = done(*predict(shop, tmp_path, "--save-uncertainty", "--json"))
    assert json.loads(result.stdout)["written"] == ["case0", "case1"]
    assert result.stderr.count("was changed or removed; it is computed again") == 2
    assert tree(tmp_path) == before


@fault("F54")
def test_an_input_that_was_changed_is_noticed_whatever_its_size_and_time(shop, tmp_path):
    images = shutil.copytree(shop / "images", tmp_path / "images")
    geometry = Geometry.plain(SHAPE, (1.0, 1.0, 1.0))
    for index in range(2):
        path = images / f"case{index}.nii"
        write_image(path, Image(array=np.full((1, *SHAPE), 1.0 + index, np.float32), geometry=geometry))
        (images / f"case{index}.nii.gz").unlink()
    os.utime(images / "case0.nii", (1, 1))
    done(*predict(shop, tmp_path / "out", images=images))
    size = (images / "case0.nii").stat().st_size
    write_image(images / "case0.nii", Image(array=np.full((1, *SHAPE), 9.0, np.float32), geometry=geometry))
    os.utime(images / "case0.nii", (1, 1))
    assert (images / "case0.nii").stat().st_size == size
    refused(2, "case 'case0' was predicted from another image", *predict(shop, tmp_path / "out", images=images))
    os.utime(images / "case1.nii", (9_999_999_999, 9_999_999_999))  # written in the far future, as it were
    again = done(*predict(shop, tmp_path / "out", "--overwrite", "--json", images=images))
    assert json.loads(again.stdout) | {"written": ["case0"], "reused": ["case1"]} == json.loads(again.stdout)


@fault("F55")
def test_an_output_that_another_process_writes_is_refused(shop, tmp_path, no_work):
    output = tmp_path / "out"
    with locked(output / LOCK):
        result = refused(2, f"process {os.getpid()} on ", *predict(shop, output))
        assert "is writing here since" in result.stderr
        refused(2, "is writing here", *predict(shop, output, "--num-shards", 2, "--shard-id", 0))
    with locked(output / LOCK, shards=2), locked(output / f"{LOCK}.shard-0-of-2"):
        refused(2, "is writing here", *predict(shop, output))
        refused(2, "is writing here", *predict(shop, output, "--num-shards", 3, "--shard-id", 1))
        refused(2, "is writing here", *predict(shop, output, "--num-shards", 2, "--shard-id", 0))
    assert not output.exists()


@fault("F55")
def test_shards_write_to_one_output_at_the_same_time(shop, tmp_path):
    with locked(tmp_path / LOCK, shards=2), locked(tmp_path / f"{LOCK}.shard-0-of-2"):
        done(*predict(shop, tmp_path, "--num-shards", 2, "--shard-id", 1))
        assert (tmp_path / "case1.json").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@fault("F55")
def test_runs_stores_datasets_and_scores_that_another_process_writes_are_refused(shop, tmp_path, no_work):
    workspace = ["--workspace", shutil.copytree(shop / "workspace", tmp_path / "workspace")]
    train_words = ["train", "supervised", 1, "--config", "3d", *QUICK, *workspace]
    run = Path(json.loads(done(*train_words, "--dry-run", "--json").stdout)["run"])
    with locked(run / LOCK):
        refused(2, "is writing here", *train_words)
        refused(2, "is writing here", *train_words, "--overwrite")
    with locked(tmp_path / "workspace" / "preprocessed" / "Dataset001_Fault" / "plans_3d" / LOCK):
        refused(2, "is writing here", "preprocess", 1, "--config", "3d", *workspace)
    source = ["convert", "folder", shop, "--images", "images/*", "--dataset", 9, "--name", "New", *workspace]
    with locked(tmp_path / "workspace" / "raw" / f"{LOCK}.Dataset009_New"):
        refused(2, "is writing here", *source)
    (tmp_path / "out").mkdir()
    shutil.copy(write_predictions(shop, tmp_path / "other") / "prediction.json", tmp_path / "out")
    with locked(tmp_path / "out" / EVALUATION_LOCK):
        refused(2, "is writing here", "evaluate", tmp_path / "out", shop / "labels")


@fault("F55")
def test_a_plan_that_another_process_makes_is_waited_for(shop, tmp_path, monkeypatch):
    """Trainings of several folds that are started together make their plan together."""
    workspace = shutil.copytree(shop / "workspace", tmp_path / "workspace")
    before = tree(workspace)
    with ExitStack() as other:
        other.enter_context(locked(workspace / "preprocessed" / "Dataset001_Fault" / LOCK))
        monkeypatch.setattr(locks.time, "sleep", lambda _: other.close())
        words = ["plan", 1, "--scale", "tiny", "--workers", 0, "--workspace", workspace]
        assert f"waiting for process {os.getpid()}" in done(*words).stderr
    assert tree(workspace).keys() == before.keys()


def write_predictions(shop, output):
    from medsegdiff_cli.artifacts.prediction_folder import PredictionInfo, write_prediction_info

    write_prediction_info(
        output,
        PredictionInfo(
            dataset=DATASET,
            dataset_path=str(shop),
            file_ending=".nii.gz",
            classes={"organ": (1,)},
            models=("toy",),
            model_digests=("0" * 64,),
            method="supervised",
            config="3d",
            msd_version="0",
            command="",
            seed=0,
            train_cases=1,
        ),
    )
    return output


@fault("F56")
def test_a_lock_of_a_process_that_is_gone_is_taken_over_and_that_is_said(shop, tmp_path):
    holder = {"pid": 4_000_000, "host": "node7", "since": "2026-01-01T00:00:00+00:00", "shards": 1}
    (tmp_path / LOCK).write_text(json.dumps(holder))
    left = tmp_path / ".0badcafe-4000000.part.case0.nii.gz"
    left.write_bytes(b"a beginning")
    result = done(*predict(shop, tmp_path))
    assert "taking over the lock of process 4000000 on node7" in result.stderr
    assert not left.exists()
    assert not (tmp_path / LOCK).exists()
