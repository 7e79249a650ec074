"""`msd reproduce` on walks: probes that see what prediction does, on the smallest networks there are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_experiments import write_toy

from medsegdiff_cli.artifacts.experiment_arms import Arm, LeakProbe, WalkProbe
from medsegdiff_cli.artifacts.run import read_run
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.workflows.reproduce import ReproduceRequest, load_declaration, reproduce
from medsegdiff_cli.workflows.reproduction_probes import probe_scores, shifted_inwards
from medsegdiff_cli.workflows.reproduction_runs import SeedRuns

CELLS = {"domains": ["blobs"], "labels": [4], "method": "recycling"}


def experiment(name: str, **criterion: object) -> dict[str, object]:
    return {"id": name, "claim": "c", "published": "p", "gate": False, "criterion": {**CELLS, **criterion}}


EXPERIMENTS = [
    experiment("steps", kind="steady-steps", steps=2, fall=100, largest_drop=100, beside=["mask-diffusion"]),
    experiment("leak", kind="leak-margin", other="mask-diffusion", timesteps=[50], shift_voxels=2, least=-100.0),
    experiment("draws", kind="draw-range", steps=2, draws=2, ratio=100.0),
    experiment("parity", kind="parity", steps=2, other="supervised", within_points=100.0),
]
PARTS = {
    "cohort": {"kind": "blobs", "shape": [16, 16], "noise": 0.5, "labelled": 4, "test": 3, "test_seed": 9},
    "objective": None,
    "pretraining": None,
    "heads": {
        "preset": "recommended",
        "overrides": {
            "network": "imgx",
            "model_channels": 8,
            "channel_mult": [1, 1],
            "attention_levels": [],
            "num_res_blocks": 1,
            "num_head_channels": 4,
            "steps": 2,
            "batch_size": 2,
            "validate_every_steps": 0,
        },
    },
    "tiers": {
        "quick": {
            "seeds": 1,
            "first_seed": 7,
            "experiments": ["steps", "leak", "draws", "parity"],
            "labels": [4],
            "minutes": "seconds",
        }
    },
    "experiments": EXPERIMENTS,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy's request, what came out, and what was said."""
    folder = tmp_path_factory.mktemp("walks")
    said: list[str] = []
    request = ReproduceRequest(paper=str(write_toy(folder, **PARTS)), output=folder / "out")
    return request, reproduce(request, said.append), said


def seed_runs(request: ReproduceRequest) -> SeedRuns:
    declaration = load_declaration(request.paper)
    return SeedRuns(request.output / "seed_7", declaration, 7, torch.device("cpu"), lambda text: None)


@pytest.mark.slow
def test_methods_are_trained_without_a_pretraining_and_every_probe_is_judged(toy):
    request, result, said = toy
    runs = [read_run(path.parent) for path in request.output.rglob("run.json")]
    assert sorted(run.method for run in runs) == ["mask-diffusion", "recycling", "supervised"]
    assert all(not run.parent and not run.val_cases and len(run.train_cases) == 4 for run in runs)
    assert [finding.met for finding in result.findings] == [True] * 4
    assert len(said) == 1 + 3 + 6
    assert said[-1].startswith("[10/10]")
    page = (request.output / "reproduction.md").read_text(encoding="utf-8")
    assert "blob phantoms of 16 x 16 pixels, noise 0.5: labelled 4 a seed, test 3 for all seeds" in page
    assert "3 test images, the same for every seed" in page
    assert "| images | n | of | step 1 | step 2 | difference |" in page


@pytest.mark.slow
def test_a_walk_ends_with_the_prediction_and_the_same_scores_are_not_made_again(toy):
    request, _, _ = toy
    runs = seed_runs(request)
    probed = Arm(method="recycling", labels=4, sampler="ddpm", sampling_steps=2, probe=WalkProbe(draws=1))
    predicted = Arm(method="recycling", labels=4, sampler="ddpm", sampling_steps=2)
    scores = runs.scores({probed: ("blobs",), predicted: ("blobs",)})
    walks, predictions = (scores[7, arm.name, "blobs"] for arm in (probed, predicted))
    assert len(walks) == 3
    assert {name: of["dice after step 2"] for name, of in walks.items()} == pytest.approx(
        {name: of["dice"] for name, of in predictions.items()}
    )
    assert {of["range after step 2"] for of in walks.values()} == {0.0}
    stored = runs.folder / "probes" / probed.name / "blobs.json"
    before = stored.stat().st_mtime_ns
    assert runs.scores({probed: ("blobs",)})[7, probed.name, "blobs"] == walks
    assert stored.stat().st_mtime_ns == before


def test_a_fed_mask_stays_in_the_image_and_moves_towards_its_middle():
    masks = np.zeros((3, 8, 8), dtype=bool)
    masks[0, 0:2, 3] = True
    masks[1, 6:8, 3] = True
    moved = shifted_inwards(masks, 2)
    assert np.argwhere(moved[0]).tolist() == [[2, 3], [3, 3]]
    assert np.argwhere(moved[1]).tolist() == [[4, 3], [5, 3]]
    assert not moved[2].any()


@pytest.mark.slow
def test_a_leak_probe_scores_the_estimate_against_both_masks(toy):
    """The judge is a method that copies what it is fed: an untrained network is replaced by the identity."""
    request, _, _ = toy
    run = next(path.parent for path in request.output.rglob("run.json") if "recycling" in str(path))
    phantoms = request.output / "seed_7" / "phantoms" / "tests" / "blobs"
    probe = LeakProbe(timesteps=(0,), shift_voxels=2)

    def copies(method, prepared, x_t, t, before):
        return (x_t + 1) / 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medsegdiff_cli.methods.mask_diffusion.MaskDiffusion.denoise", copies)
        scores = probe_scores(
            probe,
            run,
            images=phantoms / "images",
            labels=phantoms / "labels",
            output=request.output / "copies.json",
            sampling=Sampling(),
            seed=0,
            device=torch.device("cpu"),
        )
    assert len(scores) == 3
    for values in scores.values():
        assert values["dice to fed mask at 0"] == 1.0
        assert 0 < values["dice to truth at 0"] < 1


@pytest.mark.slow
def test_images_that_are_not_one_window_are_refused(toy, tmp_path: Path):
    from medsegdiff_cli.workflows.phantoms import write_blobs

    request, _, _ = toy
    run = next(path.parent for path in request.output.rglob("run.json") if "recycling" in str(path))
    write_blobs(tmp_path, 1, shape=(20, 20))
    with pytest.raises(InputDataError, match="the network's window has"):
        probe_scores(
            WalkProbe(draws=1),
            run,
            images=tmp_path / "images",
            labels=tmp_path / "labels",
            output=tmp_path / "scores.json",
            sampling=Sampling(),
            seed=0,
            device=torch.device("cpu"),
        )
