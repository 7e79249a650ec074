"""Paired statistics: are two sets of scores of the same cases different, and by how much?

Everything here is about differences of one value a case. A difference is never tested without its size: the percentile
bootstrap gives an interval of the mean difference (Efron, Ann. Stat. 7, 1979), Wilcoxon's signed-rank test or the
paired t-test a p-value, and Holm's (Scand. J. Stat. 6, 1979) or Bonferroni's correction accounts for several of them.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

PairedTest = Literal["wilcoxon", "ttest"]
Correction = Literal["holm", "bonferroni", "none"]

# Values drawn at a time: bounds memory whatever the numbers of cases and resamples.
_DRAWN_AT_ONCE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PValue:
    """A two-sided p-value, or None with the reason why there is none.

    Attributes:
        p: in [0, 1]; None when the test could not come out below alpha or is not defined.
        note: why there is no p; empty otherwise.
    """

    p: float | None
    note: str = ""


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    seed: int,
    resamples: int = 10_000,
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean.

    The bounds are order statistics of the resampled means, not interpolated: the interval of `-values` is exactly the
    mirrored one. They depend on the order of `values`, so give them in a fixed one (by case name).

    Args:
        values: one finite number a case.
        seed: same seed, same interval.
        resamples: number of bootstrap samples.
        groups: the patient of each value; then whole patients are drawn, with all their cases, because cases of one
            patient are not independent. The mean stays that over cases.
        confidence: of the interval, between 0 and 1.

    Returns:
        (low, high) in the unit of `values`; both NaN when there are fewer than two cases (or patients) to draw from.

    Raises:
        ValueError: a value that is not finite, groups of another length, or resamples or confidence out of range.
    """
    array = _finite(values)
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples must be at least 1 and 0 < confidence < 1: {resamples}, {confidence}")
    sums, sizes = (array, np.ones(array.size)) if groups is None else _per_group(array, groups)
    n = sums.size
    if n < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWN_AT_ONCE // n)
    means: np.ndarray = np.empty(resamples)
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, n, size=(min(rows, resamples - start), n))
        means[start : start + rows] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    means.sort()
    outside = max(0, math.floor((resamples + 1) * (1 - confidence) / 2) - 1)
    return float(means[outside]), float(means[resamples - 1 - outside])


def group_means(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Return one mean a group (n_groups,), in the order in which groups first occur."""
    sums, sizes = _per_group(_finite(values), groups)
    return sums / sizes


def paired_test(differences: Sequence[float] | np.ndarray, test: PairedTest, alpha: float) -> PValue:
    """Test whether paired differences are centred on 0, two-sided.

    Args:
        differences: one a case (or patient), independent of each other.
        test: "wilcoxon" (signed ranks; differences of 0 are left out, as Wilcoxon did) or "ttest" (paired Student).
        alpha: the level; a Wilcoxon test with so few non-zero differences that no data could reach it is not run.
    """
    array = _finite(differences)
    return _wilcoxon(array, alpha) if test == "wilcoxon" else _t_test(array)


def corrected(p_values: Sequence[float], correction: Correction) -> list[float]:
    """Return p-values that account for being a family: compare them with the uncorrected alpha.

    Bonferroni multiplies by the family's size m. Holm multiplies the smallest by m, the next by m - 1 and so on, and
    never lets one come out below a smaller one's. Both end at 1 and control the family-wise error under any dependence.
    """
    m = len(p_values)
    if correction == "none":
        return list(p_values)
    if correction == "bonferroni":
        return [min(1.0, m * p) for p in p_values]
    adjusted = [0.0] * m
    largest_yet = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest_yet = max(largest_yet, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = largest_yet
    return adjusted


def smallest_p(n: int) -> float:
    """Return the smallest two-sided p that Wilcoxon's exact test can give for n non-zero differences: 2 / 2^n."""
    return 2.0 ** (1 - n) if n else 1.0


def _wilcoxon(differences: np.ndarray, alpha: float) -> PValue:
    n = int(np.count_nonzero(differences))
    if smallest_p(n) > alpha:
        note = f"too few for Wilcoxon: {n} non-zero differences can't give p below {smallest_p(n):.3g}"
        return PValue(p=None, note=note)
    # Imported here: it takes most of a second, which a bootstrap alone need not wait for.
    from scipy import stats

    # SciPy leaves zeros out itself, but an exact distribution is only chosen when there are none.
    outcome = stats.wilcoxon(differences[differences != 0], alternative="two-sided")
    return PValue(p=float(outcome.pvalue))


def _t_test(differences: np.ndarray) -> PValue:
    if differences.size < 2:
        return PValue(p=None, note=f"too few for a t-test: {differences.size} differences")
    if np.ptp(differences) == 0:
        return PValue(p=None, note="no t-test: all differences are equal")
    from scipy import stats

    return PValue(p=float(stats.ttest_1samp(differences, 0.0).pvalue))


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"expected finite numbers in one row, got shape {array.shape}")
    return array


def _per_group(values: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Return sum and number of values per group, groups in the order of their first case."""
    if len(groups) != values.size:
        raise ValueError(f"{len(groups)} groups for {values.size} values")
    position = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    member = np.array([position[group] for group in groups], dtype=np.intp)
    n = len(position)
    return np.bincount(member, weights=values, minlength=n), np.bincount(member, minlength=n).astype(np.float64)
