"""Every event of the atomic writer fails once, in every command that writes: killed, disk full, disk broken.

After each failure no final name has a part of its content; then the same command runs again, and every byte is that of
a run that nothing happened to, and nothing else is left. Each command is forked from this process, which has imported
everything already.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from failing_writes import BROKEN, FAULTS, FULL, KILL, Child, Fault, run_child
from msd_shell import tree
from toy_models import write_run_folder
from typer.testing import CliRunner

from medsegdiff_cli.atomic import digest_of_file
from medsegdiff_cli.cli.app import app
from medsegdiff_cli.errors import MsdError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image, write_label
from medsegdiff_cli.training.checkpoints import LAST, StageCheckpoints
from medsegdiff_cli.training.counters import Counters
from medsegdiff_cli.workflows import plan

pytestmark = pytest.mark.xdist_group("crash_loop")
SHAPE = (8, 8, 8)
RESOURCE = 4
# Events of `sys.addaudithook` that change something.
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}


@dataclass(frozen=True)
class Scene:
    """A command, and the state of its folder before it.

    Attributes:
        work: where it writes; always the same path, since some files name the folder.
        before: what is there when it starts.
    """

    command: Callable[[], int]
    work: Path
    before: Path
    scratch: Path

    def set_up(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.before, self.work)

    def run(self, fault: Fault | None = None) -> Child:
        return run_child(self.command, self.scratch, fault)


def msd(*words: object) -> int:
    result = CliRunner().invoke(app, [str(word) for word in words])
    print(result.output, result.exception or "")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "internal error" not in result.output
    return result.exit_code


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A vendor's folder, a dataset, images, a model, predictions; all of cases of 8 x 8 x 8 voxels."""
    folder = tmp_path_factory.mktemp("lab")
    geometry, random = Geometry.plain(SHAPE, (1.0, 1.0, 1.0)), np.random.default_rng(0)
    for index in range(2):
        image = Image(array=random.normal(size=(1, *SHAPE)).astype(np.float32), geometry=geometry)
        label = np.zeros(SHAPE, np.uint8)
        label[2:6, 2:6, 2 : 5 + index], label[3, 3, 3] = 1, 2
        for place in (folder / "vendor" / "img", folder / "images"):
            write_image(place / f"case_{index}.nii.gz", image)
        for place in (folder / "vendor" / "lab", folder / "labels"):
            write_label(place / f"case_{index}.nii.gz", label, geometry)
    write_run_folder(folder / "results")
    (folder / "scratch").mkdir()
    (folder / "before" / "nothing").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "measure_training", lambda *_: 20_000_000)
        for name in ("convert", "plan", "predict"):  # what later commands start from
            scene = scene_of(folder, name)
            scene.set_up()
            done = scene.run()
            assert done.code == 0, done.words
            shutil.copytree(scene.work, folder / "before" / name)
        yield folder


def scene_of(folder: Path, name: str) -> Scene:
    work = folder / "work"
    dataset = folder / "before" / "convert" / "raw" / "Dataset001_Fault"
    quiet = ["--quiet"]
    flags = (
        "--dataset 1 --name Fault --images img/* --labels lab/* --label-map 1:organ --label-map 2:nodule --workers 1"
    )
    predict = ["predict", folder / "results" / "Dataset007_Toy" / "supervised__3d", folder / "images", work]
    maps = ["--save-probabilities", "--save-uncertainty", "--save-members"]
    commands = {
        "convert": (
            "nothing",
            ["convert", "folder", folder / "vendor", *flags.split(), "--workers", 1, "--workspace", work],
        ),
        "plan": (
            "nothing",
            ["plan", dataset, "--scale", "tiny", "--memory", "4G", "--workers", 0, "--workspace", work],
        ),
        "preprocess": ("plan", ["preprocess", dataset, "--config", "3d", "--workers", 0, "--workspace", work]),
        "predict": ("nothing", [*predict, *maps, "--workers", 0, "--device", "cpu"]),
        "evaluate": ("predict", ["evaluate", work, folder / "labels", "--workers", 0]),
    }
    if name == "checkpoints":
        return Scene(lambda: save_checkpoints(work), work, folder / "before" / "nothing", folder / "scratch")
    before, words = commands[name]
    return Scene(lambda: msd(*words, *quiet), work, folder / "before" / before, folder / "scratch")


def save_checkpoints(folder: Path) -> int:
    """Train, as far as files are concerned: go on from the newest checkpoint, save every ten steps, write `last`."""
    checkpoints = StageCheckpoints(folder, "train")
    try:
        found = checkpoints.newest()
        start = 0 if found is None else Counters(**found.state["counters"]).step
        for step in range(start + 10, 40, 10):
            checkpoints.save(tensors_at(step), Counters(step=step), 1)
        checkpoints.save(tensors_at(40), Counters(step=40), 1)  # at the end in any case, as the loop does
        checkpoints.write_weights(LAST, tensors_at(40), Counters(step=40), None)
    except MsdError as error:
        print(error)
        return error.exit_code
    return 0


def tensors_at(step: int) -> dict[str, torch.Tensor]:
    return {"model.weight": torch.full((64, 64), float(step))}


COMMANDS = {
    "predict": ("F41",),
    "checkpoints": ("F42",),
    "plan": ("F43",),
    "preprocess": ("F43",),
    "convert": ("F43",),
    "evaluate": ("F43",),
}
PARAMETERS = [pytest.param(name, marks=pytest.mark.fault(*ids, "F44", "F45", "F46")) for name, ids in COMMANDS.items()]


@pytest.mark.parametrize("name", PARAMETERS)
def test_some_events_that_fail_cost_nothing(lab, name):
    clean, events = clean_run(scene_of(lab, name))
    last = len(events) - 1
    for fault in (Fault(KILL, last // 2), Fault(FULL, last // 3), Fault(BROKEN, events.index("fsync"))):
        fail_and_run_again(scene_of(lab, name), fault, clean)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", PARAMETERS)
def test_every_event_that_fails_costs_nothing(lab, name):
    clean, events = clean_run(scene_of(lab, name))
    for at in range(len(events)):
        for kind in FAULTS:
            fail_and_run_again(scene_of(lab, name), Fault(kind, at), clean)


def clean_run(scene: Scene) -> tuple[dict[str, bytes], list[str]]:
    scene.set_up()
    child = scene.run()
    assert child.code == 0, child.words
    result = tree(scene.work)
    assert hidden(result) == []
    scene.set_up()
    assert scene.run().events == child.events
    assert tree(scene.work) == result, "two undisturbed runs differ"
    kinds = {event.split()[0] for event in child.events}
    assert kinds >= {"fsync", "replace"} | ({"open", "write"}), kinds
    return result, list(child.events)


def fail_and_run_again(scene: Scene, fault: Fault, clean: dict[str, bytes]) -> None:
    scene.set_up()
    before = tree(scene.work)
    failed = scene.run(fault)
    what = f"{fault} of {failed.events[-3:]}: {failed.words}"
    assert failed.code == (-signal.SIGKILL if fault.kind == KILL else RESOURCE), what
    assert "Traceback" not in failed.words, what
    for name, content in tree(scene.work).items():
        if not any(part.startswith(".") for part in Path(name).parts):
            assert is_whole(name, content, before, clean, scene.work), f"{name}: {what}"
    if fault.kind != KILL:
        assert hidden(tree(scene.work)) == [], what
    is_done = {name: content for name, content in tree(scene.work).items() if "/." not in name} == clean
    again = scene.run()
    # A dataset that was there already is refused, as it is without any failure.
    expected = 2 if is_done and "exists already" in again.words else 0
    assert again.code == expected, f"{what}\nthen: {again.words}"
    result = tree(scene.work)
    assert sorted(result) == sorted(clean), what
    assert [name for name in clean if result[name] != clean[name]] == [], what


def is_whole(name: str, content: bytes, before: dict[str, bytes], clean: dict[str, bytes], work: Path) -> bool:
    """Tell whether a file under its final name is complete: as it will be in the end, or as it was."""
    if content in (before.get(name), clean.get(name)):
        return True
    if name == "volumes.csv":  # of the cases that were done
        return content.endswith(b"\n") and set(content.splitlines()) <= set(clean[name].splitlines())
    if name.startswith("step_"):  # a checkpoint on the way, replaced by later ones
        path = (work / name).with_suffix(".json")
        return not path.is_file() or is_checkpoint(path)
    return False


def is_checkpoint(path: Path) -> bool:
    header = json.loads(path.read_text())
    weights = path.with_suffix(".safetensors")
    return not weights.exists() or header["sha256"] == digest_of_file(weights)


def hidden(files: dict[str, bytes]) -> list[str]:
    return [name for name in files if any(part.startswith(".") for part in Path(name).parts)]


@pytest.mark.parametrize("name", PARAMETERS)
def test_nothing_is_written_elsewhere(lab, name):
    """As Python sees it; what native libraries do is looked at with strace, below."""
    scene = scene_of(lab, name)
    scene.set_up()
    temporary = lab / "scratch" / "tmp"
    temporary.mkdir(exist_ok=True)

    def watched() -> int:
        sys.dont_write_bytecode = True
        tempfile.tempdir = str(temporary)
        written: list[str] = []

        def note(event: str, details: tuple[object, ...]) -> None:
            flags = details[2] if event == "open" else 0
            if event in CHANGES or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                written.extend(str(Path(os.fsdecode(path)).absolute()) for path in details[:2] if is_path(path, event))

        sys.addaudithook(note)
        code = scene.command()
        places = (str(scene.work), str(scene.scratch), os.devnull)
        elsewhere = sorted({path for path in written if not path.startswith(places)})
        print("written elsewhere:", elsewhere)
        return code or len(elsewhere) or (0 if any(path.startswith(places[0]) for path in written) else 97)

    child = run_child(watched, lab / "scratch")
    assert child.code == 0, child.words


def is_path(value: object, event: str) -> bool:
    return isinstance(value, str | bytes | Path) and not (event == "open" and value in ("r", "w", "rb", "wb", "a"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault("F41")
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_call_of_the_system_writes_elsewhere(lab, tmp_path):
    output, temporary, notes = tmp_path / "out", tmp_path / "tmp", tmp_path / "strace.txt"
    temporary.mkdir()
    words = ["predict", lab / "results" / "Dataset007_Toy" / "supervised__3d", lab / "images", output, "--workers", "0"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(temporary), "HOME": str(tmp_path)}
    tracing = ["strace", "-f", "-qq", "-y", "-s", "1000", "-e", "trace=%file", "-o", str(notes)]
    command = [*tracing, sys.executable, "-m", "medsegdiff_cli", *map(str, words), "--save-uncertainty"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    written = set(paths_changed(notes.read_text(errors="replace"), tmp_path))
    assert any(path.startswith(f"{output}/") for path in written)
    # A thread's name is written to /proc; /dev holds no files.
    allowed = (str(output), str(temporary), "/proc/self/", "/dev/null", "/dev/tty", "/dev/nvidia")
    assert sorted(path for path in written if not path.startswith(allowed)) == []


def paths_changed(trace: str, folder: Path) -> list[str]:
    """Return the paths that calls which succeeded made, changed, or opened for writing."""
    found = []
    for line in trace.splitlines():
        call = re.match(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)", line)
        if call is None or call[3].startswith("-") or call[1] in ("access", "stat", "lstat", "readlink", "statfs"):
            continue
        changes = call[1].startswith(("mkdir", "rename", "unlink", "rmdir", "link", "symlink", "truncate", "chmod"))
        if changes or (call[1].startswith(("open", "creat")) and re.search(r"O_(WRONLY|RDWR|CREAT)", call[2])):
            found += [str(folder / path) for path in re.findall(r'"((?:[^"\\]|\\.)*)"', call[2])]
    return found


@pytest.mark.fault("F42", "F44")
@pytest.mark.parametrize("kind", FAULTS)
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, kind):
    work = tmp_path / "work"
    (tmp_path / "scratch").mkdir()
    StageCheckpoints(work, "train").save(tensors_at(10), Counters(step=10), 1)

    def save() -> int:
        StageCheckpoints(work, "train").save(tensors_at(20), Counters(step=20), 1)
        return 0

    n_events = len(run_child(save, tmp_path / "scratch").events)
    for at in range(n_events):
        shutil.rmtree(work)
        StageCheckpoints(work, "train").save(tensors_at(10), Counters(step=10), 1)
        run_child(save, tmp_path / "scratch", Fault(kind, at))
        found = StageCheckpoints(work, "train").newest()
        assert found is not None
        counters = Counters(**found.state["counters"])
        assert asdict(counters) == asdict(Counters(step=counters.step))
        assert torch.equal(found.tensors["model.weight"], tensors_at(counters.step)["model.weight"])
