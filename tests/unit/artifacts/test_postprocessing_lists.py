"""Lists of post-processing steps: how they are written, read back and refused."""

import pytest

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.postprocessing import (
    FillHoles,
    KeepComponents,
    LargestComponent,
    MuscleUltrasound,
    Opening,
    RemoveBelow,
    as_plain_data,
    parse_postprocessing,
)
from medsegdiff_cli.artifacts.recipe import PredictionSettings
from medsegdiff_cli.errors import UsageError

STEPS = (FillHoles(), Opening(radius_mm=2, classes=("liver",)), LargestComponent())


def test_a_list_is_written_as_names_as_yaml_or_in_a_file(tmp_path):
    inline = "fill-holes, {step: opening, radius_mm: 2, classes: [liver]}, largest-component"
    (tmp_path / "list.yaml").write_text(
        "- fill-holes\n- {step: opening, radius_mm: 2, classes: [liver]}\n- largest-component\n"
    )
    (tmp_path / "keyed.yml").write_text("postprocessing: [fill-holes, {step: keep-components, n: 2}]\n")
    assert parse_postprocessing(inline) == STEPS
    assert parse_postprocessing(f"[{inline}]") == STEPS
    assert parse_postprocessing(str(tmp_path / "list.yaml")) == STEPS
    assert parse_postprocessing(str(tmp_path / "keyed.yml")) == (FillHoles(), KeepComponents(n=2))
    assert parse_postprocessing("muscle-ultrasound") == (MuscleUltrasound(superficial="top", disks="round"),)
    assert parse_postprocessing("none") == ()


def test_a_recipe_holds_the_list_and_plain_data_brings_it_back():
    settings = validate(
        PredictionSettings, {"postprocessing": ["fill-holes", {"step": "remove-below", "volume_mm3": 9}]}, "here"
    )
    assert settings.postprocessing == (FillHoles(), RemoveBelow(volume_mm3=9))
    stored = settings.model_dump(mode="json")
    assert stored["postprocessing"] == as_plain_data(settings.postprocessing)
    assert stored["postprocessing"][0] == {"step": "fill-holes", "classes": None}
    assert validate(PredictionSettings, stored, "here") == settings
    assert PredictionSettings().postprocessing == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fill-hole", "did you mean 'fill-holes'"),
        ("[{step: opening, radius: 3}]", "did you mean 'radius_mm'"),
        ("opening", "radius_mm or radius_voxels"),
        ("[{step: opening, radius_mm: 3, radius_voxels: 3}]", "radius_mm or radius_voxels"),
        ("[{step: erosion, radius_mm: -1}]", "greater than 0"),
        ("keep-components", "n"),
        ("[{step: remove-below}]", "volume_mm3 or volume_voxels"),
        ("[{step: muscle-ultrasound, superficial: bottom}]", "'top' or 'left'"),
        ("[{step: fill-holes, classes: []}]", "at least 1"),
        ("[{n: 3}]", "no step 'none'"),
        ("[]", "no list of steps"),
        ("[fill-holes", "not valid yaml"),
        ("nowhere.yaml", "missing"),
    ],
)
def test_a_wrong_list_is_refused_with_the_nearest_right_word(text, words):
    with pytest.raises(UsageError) as refusal:
        parse_postprocessing(text)
    assert words in str(refusal.value).lower()
