"""Work that is split comes together: shards of cases, batches of windows, weights of windows."""

import math
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.inference.windows import WindowGrid
from medsegdiff_cli.prediction.inputs import InputCase, shard

few = settings(max_examples=80, deadline=None, derandomize=True)
names = st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=40)
axes = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=2, max_size=3)


def cases_of(found: list[str]) -> list[InputCase]:
    return [InputCase(case=name, images=()) for name in found]


@pytest.mark.fault("F66")
@few
@given(names, st.integers(1, 12), st.randoms(use_true_random=False))
def test_shards_hold_every_case_once_in_equal_parts_whatever_the_order(found, count, random) -> None:
    shards = [shard(cases_of(found), count, number) for number in range(count)]
    together = [case.case for part in shards for case in part]
    assert sorted(together) == sorted(found)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    shuffled = random.sample(found, len(found))
    assert [shard(cases_of(shuffled), count, number) for number in range(count)] == shards


@few
@given(st.integers(-3, 20), st.integers(-3, 20))
def test_a_shard_that_does_not_exist_is_refused(count, number) -> None:
    if count >= 1 and 0 <= number < count:
        assert shard((), count, number) == ()
    else:
        with pytest.raises(UsageError, match="--shard-id"):
            shard((), count, number)


@pytest.mark.fault("F38")
@few
@given(axes, st.floats(0.1, 1), st.integers(1, 20))
def test_windows_lie_inside_and_cover_and_their_shares_sum_to_one(sizes, step_size, batch) -> None:
    patch, shape = tuple(edge for edge, _ in sizes), tuple(edge + more for edge, more in sizes)
    grid = WindowGrid(shape, patch, step_size)
    if len(grid.starts) > 2000:
        return
    shares, visits = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.int64)
    for start in grid.starts:
        assert all(0 <= first <= length - edge for first, length, edge in zip(start, shape, patch, strict=True))
        shares[grid.slices(start)] += grid.weight.double() / grid.total_weight[grid.slices(start)].double()
        visits[grid.slices(start)] += 1
    assert visits.min() >= 1
    torch.testing.assert_close(shares, torch.ones(shape, dtype=torch.float64), rtol=0, atol=1e-5)
    assert len(set(grid.starts)) == len(grid.starts)
    assert list(chain.from_iterable(grid.batches(batch))) == list(range(len(grid.starts)))
    assert len(list(grid.batches(batch))) == math.ceil(len(grid.starts) / batch)
