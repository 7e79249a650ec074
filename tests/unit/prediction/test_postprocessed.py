"""Stored steps on label maps of a case: units, classes, regions, and what is refused."""

import numpy as np
import pytest

from medsegdiff_cli.artifacts.label_scheme import label_scheme_from_json
from medsegdiff_cli.artifacts.postprocessing import parse_postprocessing
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.image import Geometry
from medsegdiff_cli.inference.volume import InferenceSettings
from medsegdiff_cli.prediction.postprocessing import postprocessed, require_applicable, require_units
from medsegdiff_cli.prediction.settings import OutputSettings, key_content

ORGANS = label_scheme_from_json({"background": 0, "liver": 3, "lesion": 7}, None, "dataset.json")
TUMOUR = label_scheme_from_json(
    {"background": 0, "whole": [1, 2, 4], "core": [2, 4], "enhancing": [4]}, [1, 2, 4], "dataset.json"
)


def cleaned(label, text, scheme=ORGANS, spacing=None, physical=True):
    geometry = Geometry.plain(label.shape, spacing, has_physical_spacing=physical)
    return postprocessed(label, scheme, geometry, parse_postprocessing(text))


def test_volumes_and_radii_are_of_the_image_in_millimetres_or_in_voxels():
    label = np.zeros((4, 12, 12), np.uint8)
    label[0, 1:3, 1:3] = 3  # 4 voxels of 2.5 mm3: 10 mm3
    label[2, 5:9, 5:9] = 3  # 16 voxels: 40 mm3
    spacing = (2.5, 1.0, 1.0)
    for volume, left in ((10, 20), (10.5, 16), (41, 0)):
        text = f"[{{step: remove-below, volume_mm3: {volume}}}]"
        assert (cleaned(label, text, spacing=spacing) == 3).sum() == left
    assert (cleaned(label, "[{step: remove-below, volume_voxels: 5}]", spacing=spacing) == 3).sum() == 16
    in_mm = cleaned(label, "[{step: dilation, radius_mm: 1}]", spacing=spacing)
    in_voxels = cleaned(label, "[{step: dilation, radius_voxels: 1}]", spacing=spacing)
    assert in_mm[1].sum() == in_mm[3].sum() == 0
    assert (in_mm[2] == 3).sum() == 16 + 4 * 4
    assert (in_voxels[1] == 3).sum() == 4 + 16


def test_steps_run_in_order_and_only_on_their_classes():
    label = np.zeros((9, 9), np.uint8)
    label[1:6, 1:6] = 3
    label[3, 3] = 0
    label[8, 0:2] = 3
    label[0, 8] = label[8, 8] = 7
    both = cleaned(label, "fill-holes, largest-component")
    assert both[3, 3] == 3
    assert (both == 3).sum() == 25
    assert (both == 7).sum() == 1
    liver = cleaned(label, "[{step: largest-component, classes: [liver]}]")
    assert (liver == 7).sum() == 2
    # A disk of radius 2 fits into the square of 5 voxels once its hole is filled, and not before.
    opening = "{step: opening, radius_voxels: 2, classes: [liver]}"
    assert (cleaned(label, f"fill-holes, {opening}") == 3).sum() == 13
    assert (cleaned(label, f"{opening}, fill-holes") == 3).sum() == 0
    assert cleaned(label, "none") is label
    assert both.dtype == label.dtype


def test_nested_regions_lose_and_fill_what_belongs_to_them():
    label = np.ones((7, 15), np.uint8)
    label[:, 7] = 0
    label[1:6, 1:6] = 2
    label[3, 3] = 1
    label[2, 10] = 4
    filled = cleaned(label, "[{step: fill-holes, classes: [core]}]", TUMOUR)
    assert filled[3, 3] == 2
    core = cleaned(label, "[{step: largest-component, classes: [core]}]", TUMOUR)
    assert core[2, 10] == 1  # no core any more, still whole tumour
    whole = cleaned(label, "largest-component", TUMOUR)
    assert not whole[:, 8:].any()


def test_millimetres_need_an_image_that_has_them():
    label = np.ones((5, 5), np.uint8) * 3
    for step in ("[{step: opening, radius_mm: 2}]", "[{step: remove-below, volume_mm3: 2}]"):
        with pytest.raises(InputDataError, match="physical spacing"):
            cleaned(label, step, physical=False)
        with pytest.raises(InputDataError, match="physical spacing"):  # and before the work
            require_units(parse_postprocessing(step), Geometry.plain((5, 5), has_physical_spacing=False))
    assert cleaned(label, "[{step: opening, radius_voxels: 2}]", physical=False).all()


def test_classes_that_are_not_there_and_slices_in_volumes_are_refused_before_the_work():
    with pytest.raises(UsageError) as refusal:
        require_applicable(parse_postprocessing("[{step: fill-holes, classes: [livver]}]"), ORGANS, 3)
    assert "did you mean 'liver'" in str(refusal.value)
    with pytest.raises(UsageError, match="2D"):
        require_applicable(parse_postprocessing("muscle-ultrasound"), ORGANS, 3)
    require_applicable(parse_postprocessing("muscle-ultrasound, fill-holes"), ORGANS, 2)


def test_two_lists_make_two_keys():
    inference = InferenceSettings(patch_size=(8, 8))
    keys = [
        key_content(inference, OutputSettings(postprocessing=parse_postprocessing(text)))
        for text in ("none", "fill-holes", "[{step: fill-holes, classes: [liver]}]")
    ]
    assert keys[0]["output"]["postprocessing"] == []
    assert len({str(key) for key in keys}) == 3
