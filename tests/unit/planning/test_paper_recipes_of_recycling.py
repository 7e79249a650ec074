"""The recipes for the recycling paper's data, against the numbers that the paper prints in (x, y, z)."""

import pytest

from medsegdiff_cli.artifacts.recipe import AugmentationSettings, PredictionSettings, TrainingSettings
from medsegdiff_cli.inference.windows import window_starts
from medsegdiff_cli.planning.overrides import PlanOverrides
from medsegdiff_cli.training.optimisation import learning_rate
from medsegdiff_cli.workflows.recipes import load_recipe, sections_of

DATA = ("amos", "pelvic-mr", "brats2021", "muscle-us")
# Section 4.1: image, patch and overlap of neighbouring patches, in voxels; voxel edges in mm.
VOLUMES = {
    "amos": ((192, 128, 128), (128, 128, 128), (64, 0, 0), (1.5, 1.5, 5.0)),
    "pelvic-mr": ((256, 256, 48), (256, 256, 32), (0, 0, 16), (0.75, 0.75, 2.5)),
    "brats2021": ((179, 219, 155), (128, 128, 128), (77, 37, 101), (1.0, 1.0, 1.0)),
}


def sections(data, preset="paper"):
    return sections_of("recycling", load_recipe(f"recycling__{data}"), preset)


@pytest.mark.parametrize("preset", ["recommended", "paper", "official-code"])
@pytest.mark.parametrize("data", VOLUMES)
def test_volumes_are_cut_into_the_papers_patches(data, preset):
    image, patch, overlap, spacing = (tuple(reversed(numbers)) for numbers in VOLUMES[data])
    chosen = sections(data, preset)
    plan = PlanOverrides.model_validate(chosen["plan"])
    assert (plan.centre_crop, plan.target_spacing_mm) == (image, spacing)
    assert tuple(chosen["training"]["patch_size_voxels"]) == patch
    step_size = PredictionSettings.model_validate(chosen["prediction"]).step_size
    for length, edge, shared in zip(image, patch, overlap, strict=True):
        starts = window_starts(length, edge, step_size)
        assert len(starts) == 1 + (length > edge)
        assert starts[0] + edge - starts[-1] == (shared if length > edge else edge)


@pytest.mark.parametrize("data", DATA)
def test_training_is_that_of_table_7(data):
    training = TrainingSettings.model_validate(sections(data)["training"])
    samples = {"muscle-us": (256, 320_000)}.get(data, (8, 100_000))
    assert (training.batch_size, training.batch_size * training.steps) == samples
    assert (training.optimiser, training.betas, training.weight_decay) == ("adamw", (0.9, 0.999), 1e-8)
    assert (training.validate_every_steps, training.selection) == (500, "best")
    assert training.validation_samplers == ("ddpm", "ddim")
    assert learning_rate(0, training) == pytest.approx(1e-5, rel=0.3)
    assert learning_rate(100, training) == pytest.approx(8e-4)
    if data != "muscle-us":
        assert learning_rate(9_999, training) == pytest.approx(5e-5, rel=1e-3)
        assert learning_rate(12_499, training) == pytest.approx(5e-5)


def test_each_patch_may_move_as_far_as_in_the_code():
    far = {"amos": 10.0, "muscle-us": 10.0, "pelvic-mr": (4.0, 20.0, 20.0), "brats2021": (4.0, 20.0, 20.0)}
    for data, voxels in far.items():
        augmentation = AugmentationSettings.model_validate(sections(data)["augmentation"])
        assert augmentation.translation_voxels == voxels
        assert (augmentation.rotation_degrees, augmentation.scaling) == (5.0, (0.85, 1.15))


def test_what_is_done_to_intensities_and_predictions():
    assert [sections(data)["plan"].get("clip") for data in DATA] == [[-991, 362], None, None, None]
    for data in DATA:
        paper, code = (
            PredictionSettings.model_validate(sections(data, p)["prediction"]) for p in ("paper", "official-code")
        )
        assert (paper.overlap, paper.window_weights) == ("mean", "uniform")
        assert (code.overlap, code.window_weights) == ("log-mean", "uniform")
        assert [step.step for step in paper.postprocessing] == (["muscle-ultrasound"] if data == "muscle-us" else [])
    assert code.postprocessing[0].superficial == "left"
    assert paper.postprocessing[0].superficial == "top"
