"""Trainings that are killed, stopped, out of time or fed with nonsense: real processes, real signals."""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from medsegdiff_cli.workflows.phantoms import PhantomSettings, make_phantom

STEPS = 100
SETTINGS = ["model_channels=8", "channel_mult=[1,2]", "validate_every_steps=0", "warmup_steps=0"]
# One thread: sums are then the same from run to run, and the tests share the machine's cores.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Each starts several processes, and a process needs seconds to import torch.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]
# A checkpoint every fifth of a second.
OFTEN = ["--set", "checkpoint_minutes=0.003"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Three cases in nnU-Net's layout, planned and preprocessed, so that a training starts at once."""
    folder = tmp_path_factory.mktemp("faults") / "workspace"
    write_dataset(folder / "raw" / "Dataset001_Fault")
    for words in (["plan", "1", "--scale", "tiny"], ["preprocess", "1", "--config", "3d"]):
        finish(start(*words, "--workspace", folder, "--workers", 0), code=0)
    return folder


def write_dataset(folder: Path, spoil=lambda index, voxels: voxels) -> None:
    folder.mkdir(parents=True)
    labels = {"background": 0, "organ": 1, "nodule": 2}
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    for index in range(3):
        phantom = make_phantom(index, PhantomSettings(shape=(12, 24, 20)))
        images = {
            f"imagesTr/case{index}_0000.nii.gz": spoil(index, phantom.image.array[0].astype(np.float32)),
            f"labelsTr/case{index}.nii.gz": phantom.label,
        }
        for name, voxels in images.items():
            (folder / name).parent.mkdir(exist_ok=True)
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(folder / name))


def start(*words, **rank):
    command = [sys.executable, "-m", "medsegdiff_cli", *map(str, words)]
    return subprocess.Popen(
        command, env={**ENVIRONMENT, **rank}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def train(workspace, name, *words, steps=STEPS, workers=0):
    settings = [word for setting in (*SETTINGS, f"steps={steps}") for word in ("--set", setting)]
    place = ["--workspace", workspace, "--workers", workers, "--name", name]
    return start("train", "supervised", 1, "--scale", "tiny", "--config", "3d", *place, *settings, *words)


def finish(process, code):
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    return out, err


def run_folder(workspace, name):
    (folder,) = (workspace / "results" / "Dataset001_Fault").glob(f"*__{name}/fold_0")
    return folder


def digest(workspace, name):
    record = json.loads((run_folder(workspace, name) / "run.json").read_text())
    assert [stage["status"] for stage in record["stages"]] == ["finished"]
    return record["weights_digest"]


def wait_for(condition, process, what, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended before {what}: {process.communicate()[1]}"
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.02)


def saved(workspace, name):
    """Return whether a checkpoint of the stage under way is complete."""
    return any((workspace / "results").glob(f"*/*__{name}/fold_0/checkpoints/step_*.json"))


@pytest.fixture(scope="module")
def undisturbed(workspace):
    finish(train(workspace, "undisturbed"), code=0)
    return digest(workspace, "undisturbed")


@pytest.mark.fault("F97")
def test_a_training_that_was_killed_ends_with_the_weights_of_an_undisturbed_one(workspace, undisturbed):
    process = train(workspace, "killed", *OFTEN)
    wait_for(lambda: saved(workspace, "killed"), process, "checkpoint")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    record = json.loads((run_folder(workspace, "killed") / "run.json").read_text())
    assert [stage["status"] for stage in record["stages"]] != ["finished"]
    _, err = finish(train(workspace, "killed", *OFTEN), code=0)
    assert "goes on at step" in err
    assert digest(workspace, "killed") == undisturbed


@dataclass(frozen=True)
class Killed:
    """A training that is killed at random moments.

    Attributes:
        steps: of the pretraining, if there is one, and of the training, each.
        runs: patterns of its runs' folders below the dataset's results.
    """

    method: str
    config: str
    words: tuple[str, ...]
    steps: int
    runs: tuple[str, ...]

    def start(self, workspace: Path, **rank: str) -> subprocess.Popen:
        size = ("model_channels=8", "channel_mult=[1,2]", "warmup_steps=0", "validate_every_steps=0")
        settings = [word for setting in (*size, *self.words) for word in ("--set", setting)]
        place = ["--workspace", workspace, "--workers", 0]
        return start(
            "train", self.method, 1, "--scale", "tiny", "--config", self.config, *settings, *OFTEN, *place, **rank
        )

    def start_two(self, workspace: Path) -> list[subprocess.Popen]:
        """Start two ranks as torchrun does."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
        return [self.start(workspace, **place, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]

    def steps_done(self, workspace: Path) -> int:
        """Return how many steps stand in the journals, which have a line a step."""
        journals = (workspace / "results").glob("*/*/fold_0/metrics.jsonl")
        return sum(len(path.read_text().splitlines()) for path in journals)

    def digests(self, workspace: Path) -> dict[str, str]:
        """Return the digest of the weights that each run ended with, and of the file that holds them."""
        found = {}
        for pattern in self.runs:
            (run,) = (workspace / "results" / "Dataset001_Fault").glob(pattern)
            record = json.loads((run / "fold_0" / "run.json").read_text())
            assert [stage["status"] for stage in record["stages"]] == ["finished"]
            found[pattern] = record["weights_digest"]
            weights = run / "fold_0" / "checkpoints" / "last.safetensors"
            found[f"{pattern} on disk"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        return found


SUPERVISED = Killed("supervised", "3d", ("steps=60",), 60, ("supervised__*",))
TEDM_SETTINGS = ("steps=60", "pretrain.steps=60", "timesteps=[1,50]")
TEDM = Killed("tedm", "2d", TEDM_SETTINGS, 120, ("pretrain-diffusion__*", "tedm__*"))


@pytest.mark.fault("F97")
@pytest.mark.parametrize("training", [SUPERVISED, TEDM], ids=lambda training: training.method)
@pytest.mark.timeout(900)
def test_five_kills_at_random_moments_change_no_weight(workspace, tmp_path, training):
    places = [shutil.copytree(workspace, tmp_path / name, ignore=_no_results) for name in ("undisturbed", "killed")]
    finish(training.start(places[0]), code=0)
    moments = random.Random(training.method)
    # From before the first step to shortly before the last; the rest of a second may bring a kill into any other work.
    for after in sorted(moments.sample(range(training.steps * 9 // 10), 5)):
        process = training.start(places[1])
        wait_for(lambda after=after: training.steps_done(places[1]) >= after, process, f"step {after}")
        time.sleep(moments.random() / 4)
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    finish(training.start(places[1]), code=0)
    assert training.digests(places[1]) == training.digests(places[0])
    assert not [path for path in places[1].rglob(".*") if path.is_file()]


@pytest.mark.fault("F53")
@pytest.mark.timeout(900)
def test_signals_in_pretraining_and_after_it_change_no_weight(workspace, tmp_path):
    places = [shutil.copytree(workspace, tmp_path / name, ignore=_no_results) for name in ("undisturbed", "stopped")]
    finish(TEDM.start(places[0]), code=0)
    for after, number in ((10, signal.SIGTERM), (75, signal.SIGINT)):
        process = TEDM.start(places[1])
        wait_for(lambda after=after: TEDM.steps_done(places[1]) >= after, process, f"step {after}")
        process.send_signal(number)
        _, err = finish(process, code=130)
        assert "saved at step" in err
    finish(TEDM.start(places[1]), code=0)
    assert TEDM.digests(places[1]) == TEDM.digests(places[0])


@pytest.mark.fault("F98")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("training", [SUPERVISED, TEDM], ids=lambda training: training.method)
def test_of_two_ranks_a_lost_one_is_noticed_and_both_go_on(workspace, tmp_path, training):
    places = [shutil.copytree(workspace, tmp_path / name, ignore=_no_results) for name in ("undisturbed", "killed")]
    for process in training.start_two(places[0]):
        finish(process, code=0)
    survivor, lost = training.start_two(places[1])
    middle = training.steps * 3 // 4
    wait_for(lambda: training.steps_done(places[1]) >= middle, survivor, f"step {middle}")
    lost.kill()
    lost.communicate(timeout=60)
    _, err = finish(survivor, code=4)
    assert "another training process is gone" in err
    for process in training.start_two(places[1]):
        finish(process, code=0)
    assert training.digests(places[1]) == training.digests(places[0])


def _no_results(folder: str, names: list[str]) -> set[str]:
    return {"results"} & set(names)


def test_a_training_with_loader_processes_has_the_weights_of_one_without(workspace, undisturbed):
    finish(train(workspace, "workers", workers=2), code=0)
    assert digest(workspace, "workers") == undisturbed


@pytest.mark.fault("F53")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_130_and_the_same_command_goes_on(workspace, undisturbed, number):
    name = f"stopped-by-{int(number)}"
    process = train(workspace, name, *OFTEN, "--json")
    wait_for(lambda: saved(workspace, name), process, "checkpoint")
    process.send_signal(number)
    out, err = finish(process, code=130)
    assert "saved at step" in err
    assert json.loads(out)["exit_code"] == 130
    finish(train(workspace, name, *OFTEN), code=0)
    assert digest(workspace, name) == undisturbed


def test_used_up_time_is_code_7_and_the_same_command_finishes(workspace, undisturbed):
    out, err = finish(train(workspace, "late", "--max-time", "0.01s", "--json"), code=7)
    assert "run the same command again" in err
    assert json.loads(out)["exit_code"] == 7
    finish(train(workspace, "late"), code=0)
    assert digest(workspace, "late") == undisturbed


@pytest.mark.fault("F58")
def test_a_killed_loader_process_is_code_4_and_names_cases(workspace):
    process = train(workspace, "orphan", steps=5000, workers=1)
    wait_for(lambda: loader_processes(process.pid), process, "loader process")
    time.sleep(0.5)
    for number in loader_processes(process.pid):
        os.kill(number, signal.SIGKILL)
    _, err = finish(process, code=4)
    assert "died" in err
    assert "case" in err
    assert "--workers" in err


def loader_processes(parent: int) -> list[int]:
    """Return the processes that the training's fork server has started to prepare batches."""
    found = []
    for server in children(parent):
        found += children(server)
    return found


def children(parent: int) -> list[int]:
    numbers = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        numbers += [int(number) for number in task.read_text().split()]
    return numbers


@pytest.mark.fault("F94")
def test_a_loss_that_is_no_number_stops_with_the_names_of_the_cases(tmp_path):
    # Intensities near the largest float32: finite in the file, their z-score or its square is not.
    write_dataset(tmp_path / "raw" / "Dataset001_Fault", lambda index, voxels: voxels * np.float32(1e36))
    _, err = finish(train(tmp_path, "nonsense", "--set", "learning_rate=1e30", "--set", "gradient_clip=null"), code=1)
    assert "diverged" in err
    assert any(f"case{index}" in err for index in range(3))
    assert "internal error" not in err
