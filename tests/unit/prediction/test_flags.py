"""Flags of a predicted case: each appears for its reason and not without it."""

from dataclasses import replace

import numpy as np
import pytest

from medsegdiff_cli.artifacts.plan import ChannelPlan
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.prediction.flags import flags_of, image_flags

CHANNEL = ChannelPlan(name="MR", normalisation="zscore", training_range=(0.0, 100.0))
USUAL = np.linspace(0, 100, 1000).reshape(1, 10, 100)


def flags(image=USUAL, voxels=(5,), agreement=None, channel=CHANNEL):
    named = {f"class{index}": count for index, count in enumerate(voxels)}
    return flags_of(as_image(image), [channel], named, agreement)


def as_image(array, **header):
    plain = Geometry.plain(array.shape[1:], has_physical_spacing=bool(header))
    return Image(array=array, geometry=replace(plain, file_header=header))


def test_a_usual_case_has_no_flag():
    assert flags() == ()
    assert flags(agreement=0.9) == ()


def test_an_empty_prediction_is_flagged_only_when_all_classes_are_empty():
    assert flags(voxels=(0, 0)) == ("empty prediction",)
    assert flags(voxels=(0, 1)) == ()


@pytest.mark.fault("F86")
@pytest.mark.parametrize(("outside", "is_flagged"), [(10, False), (11, True)])
def test_more_than_one_percent_outside_of_the_training_range_is_flagged(outside, is_flagged):
    image = USUAL.copy()
    image.reshape(-1)[:outside] = 101  # of 1000 voxels
    assert bool(flags(image)) is is_flagged
    assert not is_flagged or "0 to 100" in flags(image)[0]


def test_a_plan_without_a_range_flags_none():
    assert flags(USUAL * 1000, channel=CHANNEL.model_copy(update={"training_range": None})) == ()


@pytest.mark.fault("F86")
def test_values_of_0_to_1_are_flagged_where_hounsfield_units_were_trained_on():
    window = {"percentile_00_5": -900.0, "percentile_99_5": 1500.0, "mean": 0.0, "std": 300.0}
    trained = CHANNEL.model_copy(
        update={"training_range": (-1024.0, 3071.0), "normalisation": "ct", "statistics": window}
    )
    unit_range = (USUAL / 100).astype(np.float32)
    (flag,) = flags(unit_range, channel=trained)
    assert "next to nothing" in flag
    assert "-1024 to 3071" in flag
    hounsfield = np.linspace(-1000, 1200, 1000).reshape(1, 10, 100)
    assert flags(hounsfield, channel=trained) == ()
    (flag,) = flags(hounsfield, channel=CHANNEL.model_copy(update={"training_range": (0.0, 1.0)}))
    assert "100 % of channel 'MR' lie outside" in flag


def test_a_dim_image_is_usual_where_each_image_is_normalised_by_itself():
    # MR scans of one set may differ by a factor of thousands.
    assert flags(USUAL, channel=CHANNEL.model_copy(update={"training_range": (0.0, 1e6)})) == ()


@pytest.mark.fault("F20")
def test_a_constant_channel_is_flagged_by_name():
    (flag,) = flags(np.full((1, 4, 4), 7.0))
    assert "'MR' is constant (7)" in flag


def test_members_that_disagree_are_flagged():
    (flag,) = flags(agreement=0.5)
    assert "low agreement" in flag
    assert "0.50" in flag


@pytest.mark.fault("F28")
def test_an_image_without_an_affine_is_flagged():
    header = {"format": "nifti", "sform_code": 0, "qform_code": 0, "xyzt_units": 2, "pixdim": [1.0, 1.0, 1.0, 0.0]}
    (flag,) = image_flags(as_image(USUAL, **header), [CHANNEL])
    assert "no affine" in flag
