"""Paired statistics against tables worked out by hand, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import special

from medsegdiff_cli.metrics.paired import bootstrap_interval, corrected, group_means, paired_test, smallest_p

# Wilcoxon's worked example as in Hollander & Wolfe (Hamilton depression scale, 9 patients): T+ = 5, two-sided p 0.0391.
DEPRESSION_BEFORE = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
DEPRESSION_AFTER = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
# "Student" 1908: extra hours of sleep by two drugs, 10 patients; t = 4.0621, p = 0.002833.
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]


def signed_rank_p(differences: list[float]) -> float:
    """Two-sided exact p by going through all 2^n signs."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    sums = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    seen = sum(r for r, d in zip(ranks, differences, strict=True) if d > 0)
    tail = min(np.mean(np.array(sums) <= seen), np.mean(np.array(sums) >= seen))
    return float(min(1.0, 2 * tail))


def test_wilcoxon_gives_the_p_of_the_textbook() -> None:
    differences = np.subtract(DEPRESSION_AFTER, DEPRESSION_BEFORE)
    assert paired_test(differences, "wilcoxon", 0.05).p == pytest.approx(0.0391, abs=5e-5)


def test_wilcoxon_equals_going_through_all_signs() -> None:
    generator = np.random.default_rng(0)
    for n in (6, 8, 10):
        differences = generator.normal(0.4, 1, n).tolist()
        assert paired_test(differences, "wilcoxon", 0.05).p == pytest.approx(signed_rank_p(differences), abs=1e-12)


def test_wilcoxon_leaves_zeros_out() -> None:
    differences = [0.3, -0.1, 0.5, 0.2, 0.7, 0.4, 0.9]
    with_zeros = [0.0, *differences, 0.0]
    assert paired_test(with_zeros, "wilcoxon", 0.05) == paired_test(differences, "wilcoxon", 0.05)


def test_the_t_test_gives_students_own_p() -> None:
    assert paired_test(SLEEP, "ttest", 0.01).p == pytest.approx(0.002833, abs=5e-7)
    t = np.mean(SLEEP) / (np.std(SLEEP, ddof=1) / math.sqrt(10))
    # The t distribution's tail as an incomplete beta function, without scipy.stats.
    assert paired_test(SLEEP, "ttest", 0.01).p == pytest.approx(special.betainc(4.5, 0.5, 9 / (9 + t**2)), rel=1e-12)


def test_too_few_differences_get_a_reason_instead_of_a_p() -> None:
    five = paired_test([1.0, 2, 3, 4, 5], "wilcoxon", 0.05)
    assert five.p is None
    assert "5 non-zero differences" in five.note
    assert "0.0625" in five.note
    assert paired_test([1.0, 2, 3, 4, 5, 6], "wilcoxon", 0.05).p == pytest.approx(2 / 2**6)
    # A stricter level needs more cases; zeros are no help.
    assert paired_test([1.0, 2, 3, 4, 5, 6], "wilcoxon", 0.01).p is None
    assert paired_test([0.0] * 30, "wilcoxon", 0.05).p is None
    assert paired_test([], "wilcoxon", 0.05).p is None
    assert "1 differences" in paired_test([1.0], "ttest", 0.01).note
    assert "equal" in paired_test([0.5, 0.5, 0.5], "ttest", 0.01).note


@pytest.mark.parametrize("n", range(1, 9))
def test_the_smallest_p_is_that_of_equal_signs(n: int) -> None:
    assert smallest_p(n) == pytest.approx(signed_rank_p([float(i) for i in range(1, n + 1)]))


def test_holm_and_bonferroni_equal_tables_by_hand() -> None:
    # In order: .005*4, .01*3, .03*2, then .04*1 raised to the .06 before it.
    assert corrected([0.01, 0.04, 0.03, 0.005], "holm") == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert corrected([0.01, 0.04, 0.03, 0.005], "bonferroni") == pytest.approx([0.04, 0.16, 0.12, 0.02])
    assert corrected([0.5, 0.6], "holm") == [1.0, 1.0]
    assert corrected([0.5, 0.6], "bonferroni") == [1.0, 1.0]
    assert corrected([0.02, 0.02], "holm") == pytest.approx([0.04, 0.04])
    assert corrected([0.01, 0.5], "none") == [0.01, 0.5]
    assert corrected([], "holm") == []


def test_holm_lies_between_plain_and_bonferroni_and_keeps_the_order() -> None:
    p_values = np.random.default_rng(1).uniform(0, 0.3, 12).tolist()
    holm, bonferroni = corrected(p_values, "holm"), corrected(p_values, "bonferroni")
    assert all(p <= h <= b for p, h, b in zip(p_values, holm, bonferroni, strict=True))
    assert np.all(np.diff(np.array(holm)[np.argsort(p_values)]) >= 0)


def test_swapping_the_sets_mirrors_the_interval_exactly_and_keeps_p() -> None:
    differences = np.random.default_rng(2).normal(0.2, 1, 23)
    groups = [f"p{i // 3}" for i in range(23)]
    for members in (None, groups):
        low, high = bootstrap_interval(differences, 0, groups=members)
        assert bootstrap_interval(-differences, 0, groups=members) == (-high, -low)
    for test in ("wilcoxon", "ttest"):
        assert paired_test(differences, test, 0.05) == paired_test(-differences, test, 0.05)


def test_the_interval_of_two_values_is_known() -> None:
    """Means of two draws of 0 and 1 are 0, 1/2 and 1 with chances 1/4, 1/2, 1/4."""
    assert bootstrap_interval([0.0, 1.0], 0) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], 0, confidence=0.4) == (0.5, 0.5)
    assert bootstrap_interval([3.0, 3.0, 3.0], 0) == (3.0, 3.0)


def test_the_seed_alone_decides() -> None:
    values = np.random.default_rng(3).normal(size=40)
    assert bootstrap_interval(values, 7) == bootstrap_interval(list(values), 7)
    assert bootstrap_interval(values, 7) != bootstrap_interval(values, 8)


def test_the_interval_of_many_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(4).normal(5, 2, 400)
    half = 1.96 * values.std() / math.sqrt(400)
    low, high = bootstrap_interval(values, 0)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    intervals = [bootstrap_interval(generator.normal(1, 1, 40), seed, 400) for seed in range(400)]
    coverage = np.mean([low <= 1 <= high for low, high in intervals])
    # 0.94 expected; four standard errors of 400 studies are 0.05.
    assert 0.89 <= coverage <= 0.98


def test_patients_with_several_alike_cases_widen_the_interval() -> None:
    """Four copies of each value tell nothing new: the interval is that of the patients, not of the cases."""
    per_patient = np.random.default_rng(6).normal(0, 1, 15)
    cases, patients = np.repeat(per_patient, 4), np.repeat(np.arange(15), 4).tolist()
    assert bootstrap_interval(cases, 0, groups=patients) == pytest.approx(bootstrap_interval(per_patient, 0))
    low, high = bootstrap_interval(cases, 0)
    grouped_low, grouped_high = bootstrap_interval(cases, 0, groups=patients)
    assert (grouped_high - grouped_low) / (high - low) == pytest.approx(2, rel=0.15)


def test_group_means_come_in_the_order_of_first_cases() -> None:
    assert group_means([1.0, 5.0, 3.0, 7.0], ["b", "a", "b", "a"]).tolist() == [2.0, 6.0]


def test_fewer_than_two_things_to_draw_from_have_no_interval() -> None:
    for values, groups in (([], None), ([1.0], None), ([1.0, 2.0], ["p", "p"])):
        assert all(math.isnan(bound) for bound in bootstrap_interval(values, 0, groups=groups))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([1.0, math.nan], 0)
    with pytest.raises(ValueError, match="groups"):
        bootstrap_interval([1.0, 2.0], 0, groups=["p"])
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_interval([1.0, 2.0], 0, 0)
