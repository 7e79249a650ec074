"""Cleaning label maps: against arrays drawn by hand and against scikit-image."""

from functools import partial

import numpy as np
import pytest
from skimage import measure, morphology

from medsegdiff_cli.imaging.postprocess import (
    PaintedClass,
    change_class,
    dilated,
    eroded,
    fill_holes,
    largest_components,
    margin_of,
    muscle_ultrasound,
    opened,
    without_small_components,
)

ONE = {"a": PaintedClass(values=(1,), paint=1)}
TWO = {"a": PaintedClass(values=(1,), paint=1), "b": PaintedClass(values=(2,), paint=2)}
# BraTS: whole tumour, core, enhancing core; each painted over the one before.
REGIONS = {
    "whole": PaintedClass(values=(1, 2, 3), paint=1),
    "core": PaintedClass(values=(2, 3), paint=2),
    "enhancing": PaintedClass(values=(3,), paint=3),
}


def drawn(text):
    """Return the array of a drawing: one line a row, digits are values, dots are 0."""
    return np.array([[0 if c == "." else int(c) for c in line.strip()] for line in text.split()], np.uint8)


def blobs(seed, shape=(24, 30)):
    """Return a seeded mask of structures, holes and specks, some of them at the border."""
    field = np.random.default_rng(seed).random(shape)
    for axis in range(field.ndim):
        field = (field + np.roll(field, 1, axis) + np.roll(field, -1, axis)) / 3
    return field > np.median(field)


def ball(n_dims, radius):
    return morphology.disk(radius) if n_dims == 2 else morphology.ball(radius)


SHAPES = pytest.mark.parametrize("shape", [(24, 30), (9, 14, 12)])


@SHAPES
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_balls_do_what_scikit_image_does(shape, radius):
    mask, element = blobs(1, shape), ball(len(shape), radius)
    ones = (1.0,) * len(shape)
    np.testing.assert_array_equal(dilated(mask, radius, ones), morphology.dilation(mask, element))
    np.testing.assert_array_equal(eroded(mask, radius, ones), morphology.erosion(mask, element, mode="max"))
    expected = morphology.dilation(morphology.erosion(mask, element, mode="max"), element)
    np.testing.assert_array_equal(opened(mask, radius, ones), expected)


def test_a_radius_in_millimetres_follows_the_spacing():
    mask = np.zeros((5, 9, 9), bool)
    mask[2, 4, 4] = True
    grown = dilated(mask, 2.1, (3.0, 1.0, 0.7))  # 3 x 0.7 is within 2.1, whatever the last digit of it says
    assert not grown[[1, 3]].any()
    assert grown[2, 4].tolist() == [False, True, True, True, True, True, True, True, False]
    assert grown[2, :, 4].tolist() == [False, False, True, True, True, True, True, False, False]
    assert margin_of(2.1, (3.0, 1.0, 0.7)) == (0, 2, 3)


def test_a_structure_that_leaves_the_image_is_not_eroded_along_the_border():
    mask = np.zeros((8, 8), bool)
    mask[:, :4] = True
    np.testing.assert_array_equal(eroded(mask, 1, (1, 1)), np.arange(8)[None, :].repeat(8, 0) < 3)
    assert eroded(np.ones((4, 4), bool), 3, (1, 1)).all()


@SHAPES
def test_holes_are_background_that_no_way_over_faces_leads_out_of(shape):
    mask = blobs(2, shape)
    outside = np.pad(~mask, 1, constant_values=True)
    numbered = measure.label(outside, connectivity=1)
    reachable = (numbered == numbered.flat[0])[(slice(1, -1),) * len(shape)]
    # What scikit-image reaches from a frame around the image is no hole.
    np.testing.assert_array_equal(fill_holes(mask), ~reachable)


@SHAPES
@pytest.mark.parametrize("full", [True, False])
def test_components_are_ranked_and_measured_as_by_scikit_image(shape, full):
    mask = np.random.default_rng(3).random(shape) < 0.25
    numbered = measure.label(mask, connectivity=len(shape) if full else 1)
    regions = sorted(measure.regionprops(numbered), key=lambda region: -region.area)
    assert len(regions) > 3
    for n in (1, 3):
        kept = largest_components(mask, n, full=full)
        assert kept.sum() == sum(region.area for region in regions[:n])
        assert (kept <= mask).all()
        assert measure.label(kept, connectivity=len(shape) if full else 1).max() == n
    big = without_small_components(mask, 6.0, 2.0, full=full)
    np.testing.assert_array_equal(big, morphology.remove_small_objects(numbered, max_size=2) > 0)


def test_of_equal_components_the_first_one_stays():
    mask = drawn("11.11 ..... 11...") > 0
    np.testing.assert_array_equal(largest_components(mask), drawn("11... ..... .....") > 0)


@SHAPES
@pytest.mark.parametrize(
    "change",
    [
        fill_holes,
        partial(opened, radius=1.5, spacing=(1.0,) * 3),
        largest_components,
        partial(largest_components, n=2),
        partial(without_small_components, smallest=5, voxel=1.0),
    ],
    ids=["fill", "open", "largest", "keep", "remove"],
)
def test_cleaning_twice_is_cleaning_once_and_nothing_stays_nothing(shape, change):
    if isinstance(change, partial) and "spacing" in change.keywords:
        change = partial(change.func, radius=1.5, spacing=(1.0,) * len(shape))
    once = change(blobs(4, shape))
    assert once.any()
    np.testing.assert_array_equal(change(once), once)
    assert not change(np.zeros(shape, bool)).any()


def test_changes_do_not_depend_on_the_box_they_see():
    for seed in range(5):
        label = blobs(seed).astype(np.uint8)
        label[:6], label[:, :7] = 0, 0
        for change, margin in [
            (fill_holes, None),
            (partial(opened, radius=2, spacing=(1, 1)), (2, 2)),
            (partial(dilated, radius=2.5, spacing=(1, 1)), (2, 2)),
            (partial(eroded, radius=2, spacing=(1, 1)), (2, 2)),
        ]:
            np.testing.assert_array_equal(change_class(label, ONE, "a", change, margin=margin), change(label > 0))


def test_filling_and_growing_take_no_voxel_of_another_class():
    label = drawn(
        """
        .......
        .11111.
        .1.2.1.
        .11111.
        ......2
        """
    )
    filled = change_class(label, TWO, "a", fill_holes)
    np.testing.assert_array_equal(
        filled,
        drawn(
            """
            .......
            .11111.
            .11211.
            .11111.
            ......2
            """
        ),
    )
    grown = change_class(label, TWO, "a", partial(dilated, radius=9, spacing=(1, 1)), margin=(9, 9))
    np.testing.assert_array_equal(grown == 2, label == 2)
    assert (grown[label != 2] == 1).all()


def test_what_is_taken_away_becomes_background_and_the_input_stays():
    label = drawn("11.2 .... 2..2 2..2")
    before = label.copy()
    np.testing.assert_array_equal(change_class(label, TWO, "b", largest_components), drawn("11.. .... 2... 2..."))
    np.testing.assert_array_equal(label, before)


def test_a_region_leaves_no_part_of_itself_behind_and_does_not_take_the_outer_one_along():
    label = drawn("1123 .... 23.. ..13")
    # The core's right part goes: its voxels stay whole tumour. Without its largest part, the whole takes all along.
    core = change_class(label, REGIONS, "core", largest_components)
    np.testing.assert_array_equal(core, drawn("1123 .... 11.. ..11"))
    whole = change_class(label, REGIONS, "whole", partial(largest_components, full=False))
    np.testing.assert_array_equal(whole, drawn("1123 .... .... ...."))


def test_a_hole_of_an_inner_region_is_filled_from_the_outer_one_alone():
    label = drawn(
        """
        11111
        12221
        12131
        12221
        11111
        """
    )
    label[0, 0] = 0
    enhancing = label.copy()
    enhancing[1:4, 1:4] = 3
    enhancing[2, 2] = 2
    core = change_class(label, REGIONS, "core", fill_holes)
    assert core[2, 2] == 2
    assert core[2, 3] == 3
    assert change_class(enhancing, REGIONS, "enhancing", fill_holes)[2, 2] == 3
    # Growing the whole tumour changes background alone.
    grown = change_class(label, REGIONS, "whole", partial(dilated, radius=2, spacing=(1, 1)), margin=(2, 2))
    assert grown[0, 0] == 1
    np.testing.assert_array_equal(grown[label > 0], label[label > 0])


def test_regions_that_overlap_halfway_keep_what_they_share():
    halves = {"left": PaintedClass(values=(1, 2), paint=1), "right": PaintedClass(values=(2, 3), paint=3)}
    label = drawn("1123 .... 23..")
    # Value 2 is both; without the left half, the right one's own value is left.
    np.testing.assert_array_equal(change_class(label, halves, "left", largest_components), drawn("1123 .... 33.."))


CHANGES = {
    "fill": (fill_holes, None),
    "erode": (partial(eroded, radius=1, spacing=(1, 1)), (1, 1)),
    "dilate": (partial(dilated, radius=2, spacing=(1, 1)), (2, 2)),
    "open": (partial(opened, radius=1, spacing=(1, 1)), (1, 1)),
    "largest": (largest_components, None),
    "remove": (partial(without_small_components, smallest=4, voxel=1.0), None),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("classes", [TWO, REGIONS], ids=["classes", "regions"])
def test_no_change_of_one_class_costs_an_unrelated_one_a_voxel(classes, name):
    change, margin = CHANGES[name]
    for seed in range(10):
        label = np.random.default_rng(seed).integers(0, len(classes) + 1, (16, 18)).astype(np.uint8)
        label = np.where(blobs(seed, label.shape), label, 0).astype(np.uint8)
        for changed, own in classes.items():
            result = change_class(label, classes, changed, change, margin=margin)
            wanted = change(np.isin(label, own.values))
            # Nothing is in the class that the change did not leave or put there.
            assert (np.isin(result, own.values) <= wanted).all()
            for other, painted in classes.items():
                before, after = np.isin(label, painted.values), np.isin(result, painted.values)
                if not set(painted.values) < set(own.values):  # what lies inside goes with it
                    assert (before <= after)[(np.isin(label, own.values) <= wanted)].all(), other
                if not set(painted.values) & set(own.values):
                    np.testing.assert_array_equal(before, after)


def muscle(rows=120, columns=140):
    """Return a filled ellipse with a hole, whose axes are long beside a disk of radius 10."""
    y, x = np.mgrid[:rows, :columns]
    mask = ((y - 70) / 30) ** 2 + ((x - 70) / 45) ** 2 < 1
    mask[68:72, 60:70] = False
    return mask


def test_a_muscle_is_filled_freed_of_specks_and_widened_by_two_pixels():
    mask = muscle()
    speckled = mask.copy()
    speckled[10:14, 10:14] = True  # eroded away
    speckled[70, 115:135] = True  # a thin line from the muscle to the right
    cleaned = muscle_ultrasound(speckled)
    disk3, disk5, disk10 = (morphology.disk(radius) for radius in (3, 5, 10))
    expected = morphology.dilation(morphology.erosion(speckled | fill_holes(mask), disk3, mode="max"), disk5)
    expected = morphology.dilation(morphology.erosion(expected, disk10, mode="max"), disk10)
    np.testing.assert_array_equal(cleaned, expected)
    assert not cleaned[:20, :20].any()
    assert cleaned[70, 60:70].all()


def two_structures(second_rows):
    """A square to the upper right, and a second one to the lower left of as many rows as asked."""
    mask = np.zeros((160, 160), bool)
    mask[20:60, 100:140] = True
    mask[100 : 100 + second_rows, 20:60] = True
    return mask


def test_the_second_structure_must_come_near_the_first_to_be_chosen():
    upper, left = np.s_[:80, 80:], np.s_[80:, :80]
    small = muscle_ultrasound(two_structures(25), superficial="left")
    assert (small[upper].any(), small[left].any()) == (True, False)
    # Of two large ones the paper takes that nearer to the top, the published code that nearer to the left.
    both = two_structures(40)
    paper, code = muscle_ultrasound(both), muscle_ultrasound(both, superficial="left")
    assert (paper[upper].any(), paper[left].any()) == (True, False)
    assert (code[upper].any(), code[left].any()) == (False, True)
    # The top one need not be the larger one.
    larger_below = np.flipud(two_structures(50))
    assert muscle_ultrasound(larger_below)[:80].any()
    assert not muscle_ultrasound(larger_below)[80:].any()


def test_matlab_disks_are_octagons_of_5_9_and_19_pixels():
    """strel('disk', 3 | 5 | 10) of MATLAB, by what they make of points, holes and squares."""
    mask = np.zeros((90, 90), bool)
    mask[20:61, 20:61] = True
    expected = np.zeros_like(mask)
    expected[18:63, 18:63] = True  # 2 away, 4 back on: the square grows by 2, the corners are cut by the octagons
    cleaned = muscle_ultrasound(mask, disks="matlab")
    assert (cleaned <= expected).all()
    rows = [int(cleaned[row].sum()) for row in (18, 19, 20, 21, 22, 23, 40)]
    # The opening with the octagon of 19 pixels (edges of 11) cuts the corners by 4, 3, 2, 1.
    assert rows == [37, 39, 41, 43, 45, 45, 45]
    np.testing.assert_array_equal(cleaned, cleaned.T)
    # A square of 18 pixels plus 4 is wide enough for 19; one of 14 plus 4 is not.
    for edge, stays in ((18, True), (14, False)):
        alone = np.zeros((90, 90), bool)
        alone[20 : 20 + edge, 20 : 20 + edge] = True
        assert muscle_ultrasound(alone, disks="matlab").any() == stays


def test_a_muscle_in_a_volume_is_a_fault_and_none_stays_none():
    with pytest.raises(ValueError, match="slice"):
        muscle_ultrasound(np.zeros((4, 4, 4), bool))
    assert not muscle_ultrasound(np.zeros((30, 30), bool)).any()
