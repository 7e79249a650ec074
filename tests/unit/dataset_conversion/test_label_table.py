"""Label tables: arbitrary values to consecutive ones."""

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsegdiff_cli.errors import InputDataError, UsageError

table = importlib.import_module("medsegdiff_cli.dataset_conversion.label_table")


@given(st.lists(st.integers(-1000, 70_000).filter(bool), min_size=1, max_size=12, unique=True), st.randoms())
def test_renumbering_keeps_the_classes_apart(values, random):
    rule = table.table_of_map({value: f"class {value}" for value in values}, None)
    label = np.array([random.choice([0, *values]) for _ in range(24)]).reshape(1, 4, 6)
    written = rule.apply(label, "here")
    assert written.dtype == np.uint8
    assert written.shape == label.shape
    for value in values:
        np.testing.assert_array_equal(written == rule.labels[f"class {value}"], label == value)
    assert sorted(rule.labels.values()) == list(range(len(values) + 1))


def test_more_than_255_classes_need_two_bytes():
    rule = table.table_of_map({value: f"class {value}" for value in range(1, 301)}, None)
    written = rule.apply(np.arange(301).reshape(1, 1, 301), "here")
    assert written.dtype == np.uint16
    assert written.max() == 300


def test_consecutive_bytes_are_handed_on_as_they_are():
    label = np.array([[[0, 1, 2]]], dtype=np.uint8)
    assert table.table_of_declared({"background": 0, "a": 1, "b": 2}, None, "here").apply(label, "here") is label


def test_a_threshold_takes_real_numbers():
    rule = table.table_of_map({}, 0.5)
    assert rule.apply(np.array([[[0.2, 0.5, 0.7]]]), "here").tolist() == [[[0, 0, 1]]]
    assert rule.labels == {"background": 0, "foreground": 1}


def test_background_may_have_several_values_but_zero_is_always_background():
    rule = table.table_of_map({7: "background", 3: "liver"}, None)
    assert rule.apply(np.array([[[0, 7, 3]]]), "here").tolist() == [[[0, 0, 1]]]
    with pytest.raises(UsageError, match="0 is mapped to 'liver'"):
        table.table_of_map({0: "liver"}, None)


@pytest.mark.parametrize("value", [1, 2, 255])
def test_a_single_value_that_nobody_named_is_the_foreground(value):
    rule = table.table_of_found({0: 90, value: 10})
    assert rule.labels == {"background": 0, "foreground": 1}
    assert rule.target_of == {0: 0, value: 1}


@pytest.mark.parametrize("counts", [{0: 90, 255: 9, 128: 1}, dict.fromkeys(range(40), 3), {-1: 4, 0: 5, 1: 4}])
def test_values_that_look_like_greys_must_be_named(counts):
    with pytest.raises(InputDataError, match="--label-map"):
        table.table_of_found(counts)
