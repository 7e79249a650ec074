"""Patches, pools, batches and estimates that nnU-Net v2's default planner gives at 8 GB."""

import math

import pytest

from medsegdiff_cli.planning.nnunet_cost import nnunet_cost
from medsegdiff_cli.planning.nnunet_rules import plan_patch

# spacing, median shape, cases, classes, then the plan.
DATASETS = {
    "hippocampus": ((1.0, 1.0, 1.0), (36, 50, 35), 260, 3),
    "brats": ((1.0, 1.0, 1.0), (138, 169, 138), 484, 4),
    "heart": ((1.37, 1.25, 1.25), (115, 320, 232), 20, 2),
    "prostate": ((3.6, 0.625, 0.625), (20, 320, 320), 32, 3),
    "liver": ((1.0, 0.7676, 0.7676), (482, 512, 512), 131, 3),
    "acdc": ((6.35, 1.5625, 1.5625), (14, 237, 208), 200, 4),
}
PLANS_3D = {
    "hippocampus": ((40, 56, 40), (3, 3, 3), 9, 19_174_400),
    "brats": ((128, 128, 128), (5, 5, 5), 2, 454_893_568),
    "heart": ((80, 192, 160), (4, 5, 5), 2, 528_211_200),
    "prostate": ((20, 320, 256), (2, 6, 6), 2, 483_315_200),
    "liver": ((128, 128, 128), (5, 5, 5), 2, 452_796_416),
    "acdc": ((14, 256, 224), (1, 5, 5), 5, 238_787_584),
}
PLANS_2D = {
    "hippocampus": ((56, 40), (3, 3), 366),
    "brats": ((192, 160), (5, 5), 105),
    "heart": ((320, 256), (6, 6), 40),
    "prostate": ((320, 320), (6, 6), 32),
    "liver": ((512, 512), (7, 7), 12),
    "acdc": ((256, 224), (5, 5), 56),
}


@pytest.mark.parametrize("name", DATASETS)
def test_the_3d_plan_equals_nnunets(name: str) -> None:
    spacing, median, n_cases, n_classes = DATASETS[name]
    plan = plan_patch(spacing, median, math.prod(median) * n_cases, nnunet_cost(3, n_classes))
    pools = tuple(sum(stride[axis] == 2 for stride in plan.topology.strides) for axis in range(3))
    # The estimate is for the reference batch of 2, the cost of one item is half of it.
    assert PLANS_3D[name] == (plan.topology.patch, pools, plan.batch, plan.cost_of_one * 2)


@pytest.mark.parametrize("name", DATASETS)
def test_the_2d_plan_equals_nnunets(name: str) -> None:
    spacing, median, n_cases, n_classes = DATASETS[name]
    plan = plan_patch(spacing[1:], median[1:], math.prod(median) * n_cases, nnunet_cost(2, n_classes))
    pools = tuple(sum(stride[axis] == 2 for stride in plan.topology.strides) for axis in range(2))
    assert PLANS_2D[name] == (plan.topology.patch, pools, plan.batch)


def test_hippocampus_batches_are_capped_at_five_percent_of_the_voxels() -> None:
    spacing, median, n_cases, n_classes = DATASETS["hippocampus"]
    voxels = math.prod(median) * n_cases
    assert plan_patch(spacing, median, voxels, nnunet_cost(3, n_classes)).uncapped_batch == 58
    assert plan_patch(spacing[1:], median[1:], voxels, nnunet_cost(2, n_classes)).uncapped_batch == 1565


def test_prostate_halves_its_fine_axes_first_and_its_kernels_follow() -> None:
    spacing, median, n_cases, n_classes = DATASETS["prostate"]
    topology = plan_patch(spacing, median, math.prod(median) * n_cases, nnunet_cost(3, n_classes)).topology
    fine, all_three = (1, 2, 2), (2, 2, 2)
    assert topology.strides == (fine, fine, all_three, all_three, fine, fine)
    assert topology.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert set(topology.kernels[2:]) == {(3, 3, 3)}
