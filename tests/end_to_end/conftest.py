"""Fixtures of the end-to-end tests: one trained run serves many of them."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from msd_shell import done, trained, write_oblique_source

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.methods.registry import find_trainable
from medsegdiff_cli.training.journal import Journal
from medsegdiff_cli.workflows import plan, run_setup


@contextmanager
def quick_training():
    """Train without pictures of progress, and with a rough count of memory for the measured one (tested apart)."""

    def rough_bytes(method, task, settings, patch_size, batch_size, device):
        # As when memory is measured, settings that make no network are found before a run's folder is made.
        method_class = find_trainable(method).load()
        with torch.device("meta"):
            method_class(task, validate(method_class.Settings, dict(settings), f"settings of method '{method}'"))
        voxels = batch_size
        for edge in patch_size:
            voxels *= edge
        return 20_000_000 + 2_000 * voxels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "measure_training", rough_bytes)
        patch.setattr(run_setup, "measure_training", rough_bytes)
        patch.setattr(Journal, "draw", lambda self: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_machine():
    """Undone after each module: tests of other folders follow in the same process."""
    with quick_training():
        yield


@dataclass(frozen=True)
class Lab:
    """A workspace with dataset 1 (6 labelled cases, 2 labelled test cases, 1 unlabelled) and a 3D run of it."""

    workspace: Path
    source: Path
    dataset: Path
    run: Path
    images: Path


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Lab:
    """Convert, plan and train once; tests must not change anything in it."""
    folder = tmp_path_factory.mktemp("lab")
    source, workspace = write_oblique_source(folder / "source", n=9, labelled=8), folder / "workspace"
    flags = "--dataset 1 --name Phantom --images img/* --labels lab/* --label-map 1:organ --label-map 2:nodule"
    more = "--test-count 2 --workers 0"
    done("convert", "folder", source, *flags.split(), *more.split(), "--workspace", workspace)
    with quick_training():
        done("plan", 1, "--workspace", workspace, "--scale", "tiny", "--workers", 0)
        run = trained(workspace, 1, "--config", "3d")
    dataset = workspace / "raw" / "Dataset001_Phantom"
    return Lab(workspace, source, dataset, run, dataset / "imagesTs")
