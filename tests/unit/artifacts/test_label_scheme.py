"""File values become class indices and come back: arbitrary integers, regions, ignored voxels."""

import numpy as np
import pytest

from medsegdiff_cli.artifacts.label_scheme import label_scheme_from_json
from medsegdiff_cli.errors import InputDataError


def scheme(labels, order=None):
    return label_scheme_from_json(labels, order, "dataset.json")


def test_arbitrary_values_are_sorted_into_indices_and_come_back():
    heart = scheme({"background": 0, "pulmonary artery": 850, "myocardium": 205, "ignore": 999})
    assert heart.class_names == ("background", "myocardium", "pulmonary artery")
    assert heart.foreground_names == ("myocardium", "pulmonary artery")
    assert heart.ignore_index == 3
    file = np.array([[0, 205, 850], [999, 850, 0]], dtype=np.int32)
    encoded = heart.encode(file)
    assert encoded.tolist() == [[0, 1, 2], [3, 2, 0]]
    assert encoded.dtype == np.uint8
    decoded = heart.decode(np.array([[0, 1, 2]]))
    assert decoded.tolist() == [[0, 205, 850]]
    assert decoded.dtype == np.uint16
    assert heart.file_values() == {"myocardium": (205,), "pulmonary artery": (850,)}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float32])
def test_labels_of_every_type_make_the_round_trip(dtype):
    organs = scheme({"background": 0, "a": 7, "b": 100, "c": 3})
    file = np.random.default_rng(0).choice([0, 3, 7, 100], size=(4, 5, 6)).astype(dtype)
    again = organs.decode(organs.encode(file))
    assert np.array_equal(again, file)
    assert again.dtype == np.uint8


def test_more_classes_than_a_byte_holds_make_the_round_trip():
    many = scheme({"background": 0, **{f"c{value}": value for value in range(1, 400)}})
    file = np.arange(400).reshape(20, 20)
    encoded = many.encode(file)
    assert encoded.dtype == np.uint16
    assert np.array_equal(many.decode(encoded), file)


@pytest.mark.parametrize(("n_classes", "dtype"), [(254, np.uint8), (255, np.uint16)])
def test_the_ignored_index_fits_its_type(n_classes, dtype):
    labels = {"background": 0, **{f"c{value}": value for value in range(1, n_classes)}, "ignore": n_classes}
    encoded = scheme(labels).encode(np.array([0, n_classes - 1, n_classes]))
    assert encoded.dtype == dtype
    assert encoded.tolist() == [0, n_classes - 1, n_classes]


def test_an_undeclared_value_is_an_input_error_that_names_value_and_file():
    organs = scheme({"background": 0, "a": 1})
    with pytest.raises(InputDataError, match=r"label values \[2, 300\] are not declared") as error:
        organs.encode(np.array([0, 1, 2, 300]), "labelsTr/x.nii.gz")
    assert error.value.where == "labelsTr/x.nii.gz"
    assert error.value.exit_code == 3


def test_a_fraction_is_not_a_label():
    with pytest.raises(InputDataError, match=r"0\.5"):
        scheme({"background": 0, "a": 1}).encode(np.array([0.0, 0.5, 1.0]))


def test_regions_keep_the_order_of_their_keys():
    brain = scheme({"background": 0, "whole": [1, 2, 4], "core": [2, 4], "enhancing": 4, "ignore": 9}, [1, 2, 4])
    assert brain.class_names == brain.foreground_names == ("whole", "core", "enhancing")
    assert not brain.classes_are_exclusive
    assert brain.values == (0, 1, 2, 4)
    assert brain.regions == ((1, 2, 3), (2, 3), (3,))
    assert brain.ignore_index == 4
    assert brain.encode(np.array([0, 1, 2, 4, 9])).tolist() == [0, 1, 2, 3, 4]
    # The export gives k + 1 where region k was painted last.
    assert brain.decode(np.array([0, 1, 2, 3])).tolist() == [0, 1, 2, 4]
    assert brain.file_values() == {"whole": (1, 2, 4), "core": (2, 4), "enhancing": (4,)}


def test_regions_in_another_order_are_painted_in_that_order():
    swapped = scheme({"background": 0, "core": [2], "whole": [1, 2]}, [2, 1])
    assert swapped.class_names == ("core", "whole")
    assert swapped.decode(np.array([0, 1, 2])).tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"a": 1}, None, "need 'background': 0"),
        ({"background": 1, "a": 0}, None, "need 'background': 0"),
        ({"background": 0, "a": 1, "b": 1}, None, "not distinct"),
        ({"background": 0, "a": 1, "ignore": 1}, None, "not distinct"),
        ({"background": 0, "a": 1, "ignore": [2]}, None, "'ignore' must be one integer"),
        ({"background": 0, "a": [1, 2], "b": 2}, None, "need a regions_class_order of 2 values"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1], "need a regions_class_order of 2 values"),
        ({"background": 0, "a": [0, 1]}, [1], "contains the background"),
        ({"background": 0, "a": [1, 2], "ignore": 2}, [1], "contains the background or the ignore"),
        ({"background": 0, "a": -1}, None, "outside of 0 to 65535"),
        ({"background": 0, "a": 1, "ignore": 70_000}, None, "outside of 0 to 65535"),
        ({"background": 0, "a": [1, 2]}, [70_000], "outside of 0 to 65535"),
    ],
)
def test_labels_that_contradict_each_other_are_input_errors(labels, order, message):
    with pytest.raises(InputDataError, match=message) as error:
        scheme(labels, order)
    assert error.value.where == "dataset.json"
