"""`msd evaluate --grid plan`: scores on the network's grid."""

import numpy as np
import pytest

from medsegdiff_cli.artifacts.dataset_folder import DatasetJson, write_dataset_json
from medsegdiff_cli.artifacts.plan import ChannelPlan, Configuration, Plan, write_plan
from medsegdiff_cli.artifacts.prediction_folder import PredictionInfo, Sidecar, write_prediction_info, write_sidecar
from medsegdiff_cli.artifacts.scores import read_scores
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image, write_label
from medsegdiff_cli.paths import Workspace
from medsegdiff_cli.workflows.evaluate import EvaluateRequest, evaluate_predictions

RUN = "supervised__2d/fold_0"


def box(shape, *edges):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(*edge) for edge in edges)] = 1
    return mask


def plan_of(n_dims, ending, **changes):
    fields = {
        "dataset": "Dataset001_Boxes",
        "fingerprint_digest": "f",
        "file_ending": ending,
        "labels": {"background": 0, "box": 1},
        "channels": (ChannelPlan(name="grey", normalisation="zscore"),),
        "geometry": "spacing",
        "transpose": tuple(range(n_dims)),
        "crop": "none",
        "default_config": "2d",
        "memory_bytes": 1,
    }
    configuration = {
        "median_shape_voxels": (8, 8),
        "patch_size_voxels": (8, 8),
        "batch_size": 1,
        "strides": ((2, 2),),
        "batch_dice": True,
    }
    configuration |= {key: changes.pop(key) for key in ("spacing_mm", "size_voxels") if key in changes}
    return Plan(**fields | changes, configurations={"2d": Configuration(**configuration)})


def make(tmp_path, *, image, reference, prediction, spacing_mm, plan):
    """Write a dataset with one test case, its prediction, and the run's plan in a workspace; return the request."""
    ending = plan.file_ending
    geometry = Geometry.plain(reference.shape, spacing_mm, has_physical_spacing=spacing_mm is not None)
    dataset, predictions, place = tmp_path / "Dataset001_Boxes", tmp_path / "predictions", Workspace(tmp_path / "ws")
    write_dataset_json(
        dataset, DatasetJson(channel_names={"0": "grey"}, labels=plan.labels, numTraining=0, file_ending=ending)
    )
    write_image(dataset / "imagesTs" / f"a_0000{ending}", Image(array=image[np.newaxis], geometry=geometry))
    write_label(dataset / "labelsTs" / f"a{ending}", reference, geometry)
    write_label(predictions / f"a{ending}", prediction, geometry)
    facts = {"msd_version": "0.1.0", "command": "", "seed": 0, "model_digests": ("m",)}
    sidecar = {"case": "a", "key": "", "input_digests": {}, "outputs": {}, "plan_digest": plan.digest()}
    write_sidecar(predictions, Sidecar(**sidecar, **facts))
    names = {"dataset": dataset.name, "dataset_path": str(dataset), "file_ending": ending, "classes": {"box": (1,)}}
    write_prediction_info(
        predictions, PredictionInfo(**names, **facts, models=(RUN,), method="supervised", config="2d", train_cases=1)
    )
    write_plan(place.results / dataset.name / RUN / "plan.yaml", plan)
    return EvaluateRequest(predictions=predictions, reference=dataset, grid="plan", workspace=place)


def counts(scores):
    ((score,),) = ([case.classes for case in scores.cases],)
    return score[0].n_ref, score[0].n_pred, score[0].tp, score[0].tp + score[0].fp + score[0].fn + score[0].tn


def test_photographs_are_scored_on_the_fixed_grid_they_were_resized_to(tmp_path):
    shape = (32, 24)
    request = make(
        tmp_path,
        image=np.arange(32 * 24, dtype=np.uint16).reshape(shape),
        reference=box(shape, (8, 24), (8, 16)),
        prediction=box(shape, (8, 24), (12, 20)),
        spacing_mm=None,
        plan=plan_of(2, ".png", geometry="resize", size_voxels=(16, 12)),
    )
    scores = evaluate_predictions(request)
    # Every second pixel is left along both axes: 16 x 8 become 8 x 4, of which 8 x 2 overlap.
    assert counts(scores) == (32, 32, 16, 16 * 12)
    assert scores.cases[0].distance_unit == "px"
    assert scores.cases[0].image_diagonal == pytest.approx(np.hypot(16, 12))


def test_volumes_are_scored_at_the_plans_spacing_in_millimetres(tmp_path):
    shape = (6, 16, 16)
    request = make(
        tmp_path,
        image=np.random.default_rng(0).integers(1, 99, shape).astype(np.int16),
        reference=box(shape, (2, 4), (4, 12), (4, 12)),
        prediction=box(shape, (2, 4), (4, 12), (8, 16)),
        spacing_mm=(5.0, 1.0, 1.0),
        plan=plan_of(3, ".nii.gz", spacing_mm=(None, 2.0, 2.0)),
    )
    scores = evaluate_predictions(request)
    # 2 x 8 x 8 voxels of 1 mm become 2 x 4 x 4 of 2 mm, half of which overlap; the prediction lies 4 mm aside.
    assert counts(scores) == (32, 32, 16, 6 * 8 * 8)
    assert scores.cases[0].distance_unit == "mm"
    assert scores.cases[0].classes[0].hd95_max == pytest.approx(4.0)
    assert scores.cases[0].classes[0].volume_reference == pytest.approx(32 * 20 / 1000)


def test_the_crop_to_nonzero_voxels_follows_the_image(tmp_path):
    shape = (20, 20)
    request = make(
        tmp_path,
        image=box(shape, (4, 14), (6, 18)) * np.uint8(100),
        reference=box(shape, (6, 10), (8, 12)),
        prediction=box(shape, (6, 10), (8, 12)),
        spacing_mm=None,
        plan=plan_of(2, ".png", crop="nonzero", spacing_mm=(1.0, 1.0)),
    )
    assert counts(evaluate_predictions(request)) == (16, 16, 16, 10 * 12)


def test_a_plan_on_the_native_grid_gives_the_native_scores(tmp_path):
    random = np.random.default_rng(3)
    shape = (5, 12, 14)
    request = make(
        tmp_path,
        image=random.integers(1, 99, shape).astype(np.int16),
        reference=(random.random(shape) > 0.6).astype(np.uint8),
        prediction=(random.random(shape) > 0.5).astype(np.uint8),
        spacing_mm=(2.0, 1.0, 1.5),
        plan=plan_of(3, ".nii.gz", spacing_mm=(2.0, 1.0, 1.5)),
    )
    on_plan = evaluate_predictions(request)
    written = read_scores(request.predictions)
    native = evaluate_predictions(EvaluateRequest(predictions=request.predictions, reference=request.reference))
    assert on_plan.cases == native.cases
    assert written.cases == on_plan.cases
    assert on_plan.provenance["grid"] == "plan"
    assert "plan's grid" in on_plan.notes[-1]
    assert not native.notes


def boxes(tmp_path):
    shape = (8, 8)
    return make(
        tmp_path,
        image=np.ones(shape, np.uint8),
        reference=box(shape, (2, 4), (2, 4)),
        prediction=box(shape, (2, 4), (2, 4)),
        spacing_mm=None,
        plan=plan_of(2, ".png", spacing_mm=(1.0, 1.0)),
    )


def test_a_missing_prediction_is_scored_zero_there_too(tmp_path):
    request = boxes(tmp_path)
    (request.predictions / "a.png").unlink()
    # The reference part is only looked for among predicted cases, so the labels folder is given.
    labels = EvaluateRequest(
        predictions=request.predictions,
        reference=request.reference / "labelsTs",
        grid="plan",
        workspace=request.workspace,
    )
    scores = evaluate_predictions(labels)
    assert scores.cases[0].missing_prediction
    assert scores.cases[0].prediction_file is None
    assert scores.cases[0].classes[0].dice == 0


def test_without_the_run_or_with_another_plan_the_plans_grid_is_a_usage_error(tmp_path):
    request = boxes(tmp_path)
    elsewhere = EvaluateRequest(
        predictions=request.predictions, reference=request.reference, grid="plan", workspace=Workspace(tmp_path / "no")
    )
    with pytest.raises(UsageError, match="is not found"):
        evaluate_predictions(elsewhere)
    path = request.workspace.results / "Dataset001_Boxes" / RUN / "plan.yaml"
    write_plan(path, plan_of(2, ".png", spacing_mm=(2.0, 2.0)))
    with pytest.raises(UsageError, match="another"):
        evaluate_predictions(request)


def test_the_plan_of_a_runs_own_validation_folder_is_found_beside_it(tmp_path):
    request = boxes(tmp_path)
    run = request.workspace.results / "Dataset001_Boxes" / RUN
    request.predictions.rename(run / "validation")
    scores = evaluate_predictions(
        EvaluateRequest(predictions=run / "validation", reference=request.reference, grid="plan")
    )
    assert scores.cases[0].classes[0].dice == 1
