"""From fingerprints that are written out here to plans and their reasons."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from medsegdiff_cli.artifacts.dataset_folder import DatasetJson
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.fingerprint import CaseFingerprint, Fingerprint, IntensityStatistics
from medsegdiff_cli.artifacts.plan import Plan, read_plan, write_plan
from medsegdiff_cli.errors import ResourceError, UsageError
from medsegdiff_cli.planning.nnunet_cost import nnunet_cost
from medsegdiff_cli.planning.overrides import PlanOverrides
from medsegdiff_cli.planning.planner import make_plan, measured_cost
from medsegdiff_cli.prediction.model import task_of
from medsegdiff_cli.preprocessing.transform_settings import transform_settings

GB = 2**30
STATISTICS = IntensityStatistics(
    mean=40, std=20, min=-1000, max=900, median=45, percentile_00_5=-60, percentile_99_5=160, n_samples=10
)


def _case(name: str, shape: tuple[int, ...], spacing: tuple[float, ...], **more: Any) -> CaseFingerprint:
    content = {
        "case": name,
        "part": "Tr",
        "digest": name,
        "shape_voxels": shape,
        "shape_after_crop_voxels": shape,
        "spacing_mm": spacing,
        "has_physical_spacing": True,
        "n_channels": 1,
        "orientation": "SAR" if len(shape) == 3 else "",
        "intensity": (STATISTICS,),
    }
    return CaseFingerprint.model_validate({**content, **more})


def _fingerprint(cases: list[CaseFingerprint], **more: Any) -> Fingerprint:
    content: dict[str, Any] = {
        "dataset": "Dataset001_Phantom",
        "channel_names": ("MRI",),
        "class_names": ("background", "organ"),
        "cases": cases,
        "foreground_intensity": (STATISTICS,),
        "mask_intensity": (STATISTICS,),
        "whole_intensity": (STATISTICS,),
        "median_relative_size_after_cropping": 1.0,
    }
    return Fingerprint.model_validate({**content, **more})


def _volumes(n: int = 20, shape: tuple[int, ...] = (36, 50, 35), spacing: tuple[float, ...] = (1, 1, 1)) -> Fingerprint:
    return _fingerprint([_case(f"c{index:02d}", shape, spacing) for index in range(n)])


def _photographs(shape: tuple[int, int], **more: Any) -> Fingerprint:
    cases = [_case(f"p{index}", shape, (1, 1), has_physical_spacing=False, **more) for index in range(12)]
    return _fingerprint(cases)


INFO = DatasetJson(channel_names={"0": "MRI"}, labels={"background": 0, "organ": 1}, numTraining=20, file_ending=".nii")


def _plan(fingerprint: Fingerprint, like: Plan | None = None, dims: tuple[int, ...] = (2, 3), **overrides: Any) -> Plan:
    return make_plan(
        fingerprint,
        INFO,
        memory_bytes=8 * GB,
        memory_source="half of the RAM",
        cost_of=lambda n_dims: nnunet_cost(n_dims, n_classes=3),
        overrides=PlanOverrides(**overrides),
        like=like,
        supported_dims=dims,
    )


def _said(plan: Plan) -> str:
    return " ".join(plan.explanation)


def test_hippocampus_sized_volumes_get_nnunets_patch_and_3d() -> None:
    plan = _plan(_volumes(n=260))
    assert plan.default_config == "3d"
    assert plan.configurations["3d"].patch_size_voxels == (40, 56, 40)
    assert plan.configurations["3d"].batch_size == 9
    assert plan.configurations["2d"].patch_size_voxels == (56, 40)
    assert plan.configurations["2d"].spacing_mm == (None, 1.0, 1.0)
    assert "3D is the default" in _said(plan)
    assert "8.0 GB, half of the RAM" in _said(plan)


def test_the_scale_is_the_devices_unless_asked_for() -> None:
    assert _plan(_volumes()).default_scale in ("small", "full")
    asked = _plan(_volumes(), default_scale="tiny")
    assert asked.default_scale == "tiny"
    assert "scale 'tiny', as asked for" in _said(asked)


def test_planning_twice_gives_the_same_plan_and_it_survives_the_disk(tmp_path: Path) -> None:
    first, second = _plan(_volumes()), _plan(_volumes())
    assert first == second
    write_plan(tmp_path / "plans.yaml", first)
    before = (tmp_path / "plans.yaml").read_bytes()
    assert first == read_plan(tmp_path / "plans.yaml")
    write_plan(tmp_path / "plans.yaml", read_plan(tmp_path / "plans.yaml"))
    assert before == (tmp_path / "plans.yaml").read_bytes()


def test_a_misspelt_key_of_an_edited_plan_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    write_plan(tmp_path / "plans.yaml", _plan(_volumes()))
    text = (tmp_path / "plans.yaml").read_text().replace("patch_size_voxels:", "patch_size_voxel:", 1)
    (tmp_path / "plans.yaml").write_text(text)
    with pytest.raises(UsageError, match="did you mean 'patch_size_voxels'") as caught:
        read_plan(tmp_path / "plans.yaml")
    assert caught.value.exit_code == 2


def test_a_misspelt_override_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'target_spacing_mm'"):
        validate(PlanOverrides, {"target_spacing_m": [1, 1, 1]}, "recipe: plan")


def test_the_plan_has_a_json_schema() -> None:
    schema = Plan.model_json_schema()
    assert {"geometry", "configurations", "mirror_axes"} <= set(schema["properties"])
    json.dumps(schema)


def test_the_coarsest_axis_comes_first_and_is_sampled_at_its_tenth_percentile() -> None:
    # Coarse along y: 5 mm against 1 mm (> 3 x), 20 against 200 voxels (3 * 20 < 200).
    cases = [_case(f"c{index}", (200, 20, 200), (1, 5 if index else 4, 1)) for index in range(11)]
    plan = _plan(_fingerprint(cases))
    # The 10th percentile of one 4 and ten 5 lies at index 10 * 0.1 = 1 of the sorted values: 5.
    assert plan.configurations["3d"].spacing_mm == (5.0, 1.0, 1.0)
    assert plan.transpose == (1, 0, 2)
    assert plan.configurations["3d"].median_shape_voxels == (20, 200, 200)
    # The plane is halved until its spacing is within a factor of 2 of the slices' (1, 2, 4 mm against 5 mm).
    assert plan.configurations["3d"].strides[:2] == ((1, 2, 2), (1, 2, 2))


def test_few_thin_slices_are_planned_in_2d_and_the_reason_is_given() -> None:
    plan = _plan(_volumes(shape=(6, 200, 200), spacing=(8, 1, 1)))
    assert ("2d", {"2d", "3d"}) == (plan.default_config, set(plan.configurations))
    assert "6 slices" in _said(plan)
    assert "--config" in _said(plan)


def test_few_labelled_cases_tip_coarse_volumes_towards_2d() -> None:
    few = _volumes(n=5, shape=(16, 200, 200), spacing=(4, 1, 1))
    many = _volumes(n=50, shape=(16, 200, 200), spacing=(4, 1, 1))
    assert (_plan(few).default_config, _plan(many).default_config) == ("2d", "3d")


def test_a_method_without_a_3d_form_gets_2d() -> None:
    plan = _plan(_volumes(), dims=(2,))
    assert plan.default_config == "2d"
    assert "no other form" in _said(plan)


def test_single_slice_volumes_have_a_2d_configuration_only() -> None:
    assert {"2d"} == set(_plan(_volumes(shape=(1, 128, 128))).configurations)


def test_photographs_are_resized_to_at_most_256() -> None:
    plan = _plan(_photographs((3000, 2600)))
    # 2600 * 256 / 3000 = 221.9, the nearest multiple of 32 is 224.
    assert (plan.geometry, plan.configurations["2d"].size_voxels) == ("resize", (256, 224))
    assert (plan.crop, plan.configurations["2d"].spacing_mm) == ("none", None)
    assert "without physical spacing" in _said(plan)


def test_thin_vessels_keep_more_pixels() -> None:
    # 2 * 3500 / 1000 = 7 px thick at 999 px: 1.8 px at 256, and 3.6 px at 512.
    plan = _plan(_photographs((960, 999), class_voxels={"vessel": 3500}, class_boundary_voxels={"vessel": 1000}))
    assert plan.configurations["2d"].size_voxels == (480, 512)
    assert "'vessel' would be only 1.8 voxels thick" in _said(plan)


def test_flat_images_with_physical_spacing_are_resampled() -> None:
    cases = [_case(f"x{index}", (400, 300), (0.2, 0.2)) for index in range(6)]
    plan = _plan(_fingerprint(cases))
    assert (plan.geometry, plan.configurations["2d"].spacing_mm) == ("spacing", (0.2, 0.2))


def test_a_given_size_means_resize_and_slices_of_volumes_can_be_resized_too() -> None:
    assert _plan(_photographs((500, 400)), size_voxels=(128, 128)).configurations["2d"].patch_size_voxels == (128, 128)
    plan = _plan(_volumes(), size_voxels=(64, 64))
    assert {"2d"} == set(plan.configurations)
    assert plan.configurations["2d"].median_shape_voxels == (36, 64, 64)
    whole = _plan(_volumes(), size_voxels=(32, 64, 64))
    assert whole.configurations["3d"].patch_size_voxels == (32, 64, 64)


def test_a_single_number_stands_for_all_axes() -> None:
    photographs = _photographs((500, 400))
    assert _plan(photographs, size_voxels=(128,)) == _plan(photographs, size_voxels=(128, 128))
    assert _plan(_volumes(), target_spacing_mm=(2,)).configurations["3d"].spacing_mm == (2, 2, 2)


def test_contradictory_overrides_are_refused() -> None:
    with pytest.raises(UsageError, match="does not go with geometry"):
        _plan(_volumes(), geometry="resize", target_spacing_mm=(1, 1, 1))
    with pytest.raises(UsageError, match="have 3 axes"):
        _plan(_volumes(), target_spacing_mm=(1, 1))
    with pytest.raises(UsageError, match="2 normalisations for 1 channels"):
        _plan(_volumes(), normalisation=("none", "none"))


def test_a_centre_crop_becomes_the_median_shape() -> None:
    plan = _plan(_volumes(shape=(100, 200, 200)), centre_crop=(32, 64, 64))
    assert plan.configurations["3d"].median_shape_voxels == (32, 64, 64)
    assert plan.configurations["3d"].patch_size_voxels == (32, 64, 64)
    assert "Only the central 32 x 64 x 64 voxels are used" in _said(plan)


def test_ct_takes_the_foregrounds_numbers_and_without_labels_the_whole_images() -> None:
    plan = _plan(_volumes().model_copy(update={"channel_names": ("CT",)}))
    assert plan.channels[0].normalisation == "ct"
    assert plan.channels[0].statistics == {
        "mean": 40.0,
        "std": 20.0,
        "percentile_00_5": -60.0,
        "percentile_99_5": 160.0,
    }
    assert plan.configurations["3d"].store_dtype == "float16"
    unlabelled = _fingerprint(
        [_case("u", (36, 50, 35), (1, 1, 1), part="Un")],
        channel_names=("CT",),
        foreground_intensity=(),
        mask_intensity=(),
    )
    assert "wider than a foreground's" in _said(_plan(unlabelled))


def test_a_range_to_clip_to_goes_with_every_channel() -> None:
    plan = _plan(_volumes(), normalisation="zscore", clip=(-991, 362))
    assert plan.channels[0].statistics == {"clip_low": -991, "clip_high": 362}
    assert "clipped to -991 ... 362 first" in _said(plan)
    assert _plan(_volumes()).channels[0].statistics == {}
    for wrong in ((362, -991), (5, 5)):
        with pytest.raises(UsageError, match="cannot be clipped"):
            _plan(_volumes(), clip=wrong)


def test_equalisation_goes_with_every_channel_and_a_scheme_that_takes_ranks() -> None:
    plan = _plan(_photographs((64, 64)), normalisation="rescale_minus1_1", equalise_gamma=0.5, clip=(0, 200))
    assert plan.channels[0].statistics == {"clip_low": 0, "clip_high": 200, "equalise_gamma": 0.5}
    assert "equalised to 0 ... 1 and taken to the power 0.5" in _said(plan)
    for scheme in ("ct", "zscore_dataset", "rgb_0_1"):
        with pytest.raises(UsageError, match=f"{scheme}.*ranks"):
            _plan(_photographs((64, 64)), normalisation=scheme, equalise_gamma=0.5)
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="equalise_gamma"):
            _plan(_photographs((64, 64)), equalise_gamma=wrong)


def test_grey_images_may_go_as_three_channels_and_colours_as_they_are() -> None:
    grey = _plan(_photographs((64, 64)), grey_to_rgb=True)
    assert (len(grey.channels), grey.channel_copies, grey.n_network_channels) == (1, 3, 3)
    assert "three times" in _said(grey)
    assert task_of(grey, "2d").in_channels == transform_settings(grey, "2d").channel_copies == 3
    plain = _plan(_photographs((64, 64)))
    assert (plain.channel_copies, plain.n_network_channels) == (1, 1)
    assert grey.digest() != plain.digest()
    photographs = _photographs((64, 64))
    colours = photographs.model_copy(update={"channel_names": ("R", "G", "B"), "whole_intensity": (STATISTICS,) * 3})
    assert _plan(colours, grey_to_rgb=True).n_network_channels == 3
    # A plan like another one treats the channels like it, too.
    assert _plan(photographs, like=grey).channel_copies == 3
    assert _plan(photographs, like=grey, grey_to_rgb=False).channel_copies == 1
    assert _plan(photographs, like=plain).channel_copies == 1
    assert _plan(colours, like=grey).channel_copies == 1


@pytest.mark.parametrize(("kept", "use_mask"), [(0.74, True), (0.76, False)])
def test_z_scores_use_the_nonzero_voxels_when_much_was_cropped(kept: float, use_mask: bool) -> None:
    plan = _plan(_volumes().model_copy(update={"median_relative_size_after_cropping": kept}))
    assert use_mask == plan.channels[0].use_mask


def test_unlabelled_images_alone_can_be_planned() -> None:
    plan = _plan(_fingerprint([_case("u", (36, 50, 35), (1, 1, 1), part="Un")], foreground_intensity=()))
    assert plan.default_config == "3d"
    assert "No labels" in _said(plan)


def test_a_patch_that_sees_little_is_said_with_what_to_do() -> None:
    plan = _plan(_volumes(shape=(482, 512, 512), spacing=(1, 0.7676, 0.7676)))
    share = 128**3 / (482 * 512 * 512)
    assert f"{share:.1%} of the median image" in _said(plan)
    assert "--target-spacing" in _said(plan)
    assert "sees only" not in _said(_plan(_volumes()))


def test_identical_orientations_are_not_mirrored_and_opposite_ones_are() -> None:
    assert _plan(_volumes()).mirror_axes == ()
    both = [_case("a", (36, 50, 35), (1, 1, 1)), _case("b", (36, 50, 35), (1, 1, 1), orientation="SAL")]
    assert _plan(_fingerprint(both)).mirror_axes == (2,)
    sided = _fingerprint(both, class_names=("background", "left_lung"))
    assert _plan(sided).mirror_axes == ()
    assert "left_lung" in _said(_plan(sided))


def test_photographs_are_mirrored_sideways_only() -> None:
    assert _plan(_photographs((300, 300))).mirror_axes == (1,)


def test_like_takes_over_geometry_and_normalisation_of_another_run() -> None:
    source = _plan(_volumes().model_copy(update={"channel_names": ("CT",)}))
    other = _fingerprint([_case("n", (80, 90, 90), (2, 2, 2))], dataset="Dataset002_Other", channel_names=("CT",))
    darker = STATISTICS.model_copy(update={"min": -5, "max": 5})
    plan = _plan(other.model_copy(update={"whole_intensity": (darker,)}), like=source)
    assert plan.dataset == "Dataset002_Other"
    assert source.configurations == plan.configurations
    assert source.channels[0].statistics == plan.channels[0].statistics
    assert _plan(other, like=source, clip=(-9, 9)).channels[0].statistics.items() >= {"clip_low": -9.0}.items()
    # Predictions are flagged by the images that the new run is trained on.
    assert plan.channels[0].training_range == (-5, 5)
    with pytest.raises(UsageError, match="cannot be given with --like"):
        _plan(other, like=source, target_spacing_mm=(1, 1, 1))
    with pytest.raises(UsageError, match="have 3 axes, these have 2"):
        _plan(_photographs((64, 64)), like=source)


def test_measured_bytes_bound_the_patch_and_the_batch() -> None:
    def measure(patch: tuple[int, ...], batch: int, strides: tuple[tuple[int, ...], ...]) -> int:
        return 10_000_000 + 1000 * batch * math.prod(patch)

    def plan_with(memory: int) -> Plan:
        fingerprint = _volumes(n=200, shape=(100, 100, 100))
        return make_plan(fingerprint, INFO, memory_bytes=memory, cost_of=lambda n: measured_cost(measure, memory))

    generous = plan_with(10 * GB).configurations["3d"]
    tight = plan_with(GB).configurations["3d"]
    assert math.prod(tight.patch_size_voxels) < math.prod(generous.patch_size_voxels)
    for configuration, memory in ((generous, 10 * GB), (tight, GB)):
        assert measure(configuration.patch_size_voxels, configuration.batch_size, ()) <= memory
        one_more = measure(configuration.patch_size_voxels, configuration.batch_size + 1, ())
        assert one_more > memory or configuration.batch_size == round(
            200 * 100**3 * 0.05 / math.prod(configuration.patch_size_voxels)
        )
    with pytest.raises(ResourceError, match="cannot be made smaller"):
        plan_with(1_000_000)
