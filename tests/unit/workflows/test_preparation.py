"""A training that starts from a run whose images were prepared otherwise says so."""

import logging
from dataclasses import replace

import pytest

from medsegdiff_cli.imaging.transform import ChannelScheme, TransformSettings
from medsegdiff_cli.workflows.preparation import differences
from medsegdiff_cli.workflows.run_request import TrainRequest
from medsegdiff_cli.workflows.run_setup import set_up_run

# One worker makes the volumes for all of them.
pytestmark = pytest.mark.xdist_group("tiny-volumes")

HERE = TransformSettings(
    transpose=(0, 1),
    crop="nonzero",
    channels=(ChannelScheme(name="grey", scheme="zscore", statistics={"mean": 1.0}),),
    geometry="spacing",
    spacing_mm=(1.0, None),
)
EQUALISED = ChannelScheme(name="x", scheme="rescale_minus1_1", statistics={"mean": 7.0, "equalise_gamma": 0.5})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"channels": (replace(HERE.channels[0], name="MR", statistics={"mean": 5.0}),)}, []),
        ({"spacing_mm": (1.0004, None), "store_dtype": "float16"}, []),
        ({"channels": (EQUALISED,)}, ["normalisation zscore, there rescale_minus1_1 (equalise_gamma 0.5)"]),
        ({"crop": "none", "channel_copies": 3}, ["copies of each channel 1, there 3", "crop nonzero, there none"]),
        ({"spacing_mm": (0.5, None)}, ["spacing_mm (1.0, None), there (0.5, None)"]),
    ],
)
def test_what_makes_images_look_different_is_named_and_nothing_else(changes, words):
    assert differences(replace(HERE, **changes), HERE) == words


def test_a_training_from_a_run_of_another_preparation_warns_and_of_the_same_does_not(tiny_volumes, caplog):
    (parent,) = (tiny_volumes.results / "Dataset001_Phantoms").glob("supervised__3d*/fold_0")
    request = TrainRequest(method="supervised", dataset="1", workspace=tiny_volumes, config="3d", parent=parent)
    with caplog.at_level(logging.WARNING):
        set_up_run(request)
        assert "prepared otherwise" not in caplog.text
        plan = parent / "plan.yaml"
        original = plan.read_text(encoding="utf-8")
        plan.write_text(original.replace("crop: nonzero", "crop: none"), encoding="utf-8")
        try:
            set_up_run(request)
        finally:
            plan.write_text(original, encoding="utf-8")
    assert "crop nonzero, there none; for the same preparation: msd plan Dataset001_Phantoms --like" in caplog.text
