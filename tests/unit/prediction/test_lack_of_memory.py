"""Memory that does not suffice: half the windows a call once, with words and a record of it, then exit code 4."""

import json

import numpy as np
import pytest
import torch
from msd_shell import done, msd, tree
from toy_models import DATASET, RUN, write_run_folder

from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image
from medsegdiff_cli.prediction import case_steps

fault = pytest.mark.fault
predict_volume = case_steps.predict_volume
DENIED = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmany more lines")
WORDS = "CUDA out of memory. Tried to allocate 2 GiB."


@pytest.fixture
def command(tmp_path):
    write_run_folder(tmp_path / "results")
    for index in range(2):
        values = np.random.default_rng(index).normal(size=(1, 8, 8, 8)).astype(np.float32)
        image = Image(array=values, geometry=Geometry.plain((8, 8, 8), (1.0, 1.0, 1.0)))
        write_image(tmp_path / "images" / f"case{index}.nii.gz", image)
    words = ("predict", tmp_path / "results" / DATASET / RUN, tmp_path / "images", tmp_path / "out")
    return (*words, "--workers", 0, "--device", "cpu")


@pytest.fixture
def memory_for(monkeypatch):
    """Let a call have so many windows, and no more."""

    def limit(most, error=DENIED):
        def predict(methods, image, case, settings, **more):
            if settings.window_batch > most:
                raise error
            return predict_volume(methods, image, case, settings, **more)

        monkeypatch.setattr(case_steps, "predict_volume", predict)

    return limit


@fault("F61")
def test_half_the_windows_a_call_are_tried_once_said_recorded_and_taken_for_done(
    command, memory_for, tmp_path, monkeypatch
):
    memory_for(2)
    said = done(*command, "--window-batch", 4).stderr
    for case in ("case0", "case1"):
        words = f"case '{case}': the memory does not suffice for 4 windows a call ({WORDS}); it is predicted with 2"
        assert said.count(words) == 1
    sidecar = json.loads((tmp_path / "out" / "case0.json").read_text())
    assert (sidecar["settings"]["inference"]["window_batch"], sidecar["window_batch"]) == (4, 2)
    before = tree(tmp_path / "out")
    monkeypatch.setattr(case_steps, "predict_volume", lambda *_, **__: pytest.fail("predicted again"))
    done(*command, "--window-batch", 4)
    assert tree(tmp_path / "out") == before


@fault("F61")
@pytest.mark.parametrize(("asked", "tried"), [(4, 2), (1, 1)])
def test_too_little_for_half_of_it_is_exit_code_4_with_the_case(command, memory_for, tmp_path, asked, tried):
    memory_for(0)
    result = msd(*command, "--window-batch", asked)
    assert result.code == 4
    assert f"does not suffice for {tried} windows a call ({WORDS})\n  where: case 'case0'" in result.stderr
    assert "--window-batch 1" in result.stderr
    assert not list((tmp_path / "out").glob("case*"))


@fault("F60", "F61")
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError("Unable to allocate 8 TiB for an array"),
    ],
)
def test_memory_that_the_computer_denies_is_no_internal_error(command, memory_for, monkeypatch, error):
    memory_for(0, error)
    assert msd(*command).code == 4

    def deny(*_, **__):
        raise error

    monkeypatch.setattr(case_steps, "read_channels", deny)
    result = msd(*command)
    assert result.code == 4
    assert "the memory does not suffice" in result.stderr
    assert "case 'case0'" in result.stderr


@fault("F61")
def test_another_error_of_the_network_stays_what_it_is(command, memory_for):
    memory_for(0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        msd(*command, "-v")


def test_nothing_of_this_is_said_where_memory_suffices(command, tmp_path):
    done(*command, "--window-batch", 4)
    assert json.loads((tmp_path / "out" / "case0.json").read_text())["window_batch"] == 4
