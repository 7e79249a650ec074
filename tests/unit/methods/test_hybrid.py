"""The hybrid objective against section 3.2 of Sauvalle & Salzmann 2024, written out by hand in float64."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.methods.hybrid import Hybrid, HybridSettings

SMALL = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": ()}
LINEAR = {"name": "linear"}
STAGE = Hybrid.stages[0]
CHANNELS, CLASSES, ITEMS = 2, 3, 4


class SaysWhatItIsTold(nn.Module):
    """Gives the same output whatever it sees, and remembers what it saw."""

    divisor = (1, 1)

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x, t):
        self.seen = x, t
        return self.output


def objective(n_dims=2, exclusive=True, shape=(), **settings):
    """Return a hybrid model and, with a shape, one that says random numbers in float64."""
    names = ("background", "organ", "nodule") if exclusive else ("whole", "nodule", "rim")
    task = Task(n_dims=n_dims, in_channels=CHANNELS, class_names=names, classes_are_exclusive=exclusive)
    built = Hybrid(task, HybridSettings(**{**SMALL, "schedule": LINEAR, **settings}))
    if shape:
        built.network = SaysWhatItIsTold(torch.randn(ITEMS, CHANNELS + CLASSES, *shape, dtype=torch.float64))
    return built


def batch_of(shape, exclusive=True, valid=None):
    size = (ITEMS, *shape) if exclusive else (ITEMS, CLASSES, *shape)
    label = torch.randint(0, CLASSES if exclusive else 2, size)
    return Batch(
        image=torch.randn(ITEMS, CHANNELS, *shape, dtype=torch.float64),
        label=label if exclusive else label.to(torch.uint8),
        valid=valid,
        case_ids=("x",) * ITEMS,
        positions=torch.arange(ITEMS),
    )


def noise():
    return NoiseSource([("hybrid", item) for item in range(ITEMS)])


def drawn(shape):
    """Return what the loss draws: t, noise, and the linear schedule's alpha_t and sigma_t, with the image's axes."""
    source = noise()
    t = source.randint(0, 1000)
    epsilon = source.randn(CHANNELS, *shape).double()
    level = (1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0)[t]
    level = level.view(-1, *[1] * (1 + len(shape)))
    return t, epsilon, level.sqrt(), (1 - level).sqrt()


SHAPES = pytest.mark.parametrize("shape", [(4, 6), (4, 2, 6)], ids=["2d", "3d"])


@SHAPES
@pytest.mark.parametrize("parameterisation", ["epsilon", "x_0"])
def test_without_the_masks_term_it_is_the_squared_error_of_the_noise(shape, parameterisation):
    model = objective(len(shape), shape=shape, parameterisation=parameterisation, mask_weight=0.0)
    batch = batch_of(shape)
    _, epsilon, alpha, sigma = drawn(shape)
    said = model.network.output.detach()[:, :CHANNELS]
    x_t = alpha * batch.image + sigma * epsilon
    of_noise = said if parameterisation == "epsilon" else (x_t - alpha * said) / sigma
    terms = model.loss(batch, STAGE, noise())
    assert terms["image"].item() == pytest.approx(((epsilon - of_noise) ** 2).mean().item(), rel=1e-9)
    assert terms["mask"].item() == 0


@SHAPES
@pytest.mark.parametrize("exclusive", [True, False], ids=["classes", "regions"])
@pytest.mark.parametrize("mask_range", ["unit", "signed"])
def test_the_loss_is_the_papers_sum_over_all_voxels_of_image_and_mask(shape, exclusive, mask_range):
    lam = 0.37
    model = objective(len(shape), exclusive, shape, parameterisation="x_0", mask_weight=lam, mask_range=mask_range)
    batch = batch_of(shape, exclusive)
    t, epsilon, alpha, sigma = drawn(shape)
    one_hot = torch.stack([batch.label == k for k in range(CLASSES)], 1) if exclusive else batch.label
    y = one_hot.double() if mask_range == "unit" else 2 * one_hot.double() - 1
    x_hat, y_hat = model.network.output.detach().split([CHANNELS, CLASSES], 1)
    image = mask = 0.0
    for item in range(ITEMS):
        snr = (alpha[item] ** 2 / sigma[item] ** 2).item()
        voxels = batch.image[item, 0].numel()
        image += snr * ((batch.image[item] - x_hat[item]) ** 2).sum().item() / (CHANNELS * voxels) / ITEMS
        mask += lam * snr * ((y[item] - y_hat[item]) ** 2).sum().item() / (CLASSES * voxels) / ITEMS
    terms = model.loss(batch, STAGE, noise())
    assert terms["image"].item() == pytest.approx(image, rel=1e-9)
    assert terms["mask"].item() == pytest.approx(mask, rel=1e-9)
    seen, at = model.network.seen
    torch.testing.assert_close(seen, alpha * batch.image + sigma * epsilon)  # x_t and nothing of the mask
    assert torch.equal(at, t)


def test_items_without_labels_and_ignored_voxels_are_no_part_of_the_masks_term():
    shape = (4, 6)
    valid = torch.ones(ITEMS, *shape, dtype=torch.bool)
    valid[1] = False  # nobody annotated this item
    valid[2, :2] = False  # nor this half
    batch = batch_of(shape, valid=valid)
    model = objective(shape=shape)
    terms = model.loss(batch, STAGE, noise())
    terms["mask"].backward()
    gradient = model.network.output.grad
    assert gradient[:, :CHANNELS].abs().max() == 0
    assert gradient[1].abs().max() == 0
    assert gradient[2, CHANNELS:, :2].abs().max() == 0
    assert gradient[2, CHANNELS:, 2:].abs().min() > 0
    # The half that is annotated counts as an image of its own would.
    _, _, alpha, sigma = drawn(shape)
    y = torch.stack([batch.label == k for k in range(CLASSES)], 1).double()
    error = (y - model.network.output.detach()[:, CHANNELS:]) ** 2
    per_item = [error[0].mean(), 0.0, error[2, :, 2:].mean(), error[3].mean()]
    weighted = sum(float(alpha[i] ** 2 / sigma[i] ** 2) * float(e) for i, e in enumerate(per_item)) / ITEMS
    assert terms["mask"].item() == pytest.approx(model.mask_weight * weighted, rel=1e-9)
    garbage = replace(batch, label=batch.label.where(valid, 200))
    assert model.loss(garbage, STAGE, noise()) == terms
    image_alone = terms["image"].item()
    assert model.loss(replace(batch, valid=torch.zeros_like(valid)), STAGE, noise())["image"].item() == image_alone


def test_lambda_follows_the_schedule_unless_it_is_given():
    paper = objective()
    assert float(paper.schedule.snr[0]) == pytest.approx(9999, rel=1e-6)
    assert paper.mask_weight == pytest.approx(1e-4, rel=1e-6)
    cosine = objective(schedule={"name": "cosine"})
    assert cosine.mask_weight * float(cosine.schedule.snr[0]) == pytest.approx(0.9999, rel=1e-9)
    assert cosine.mask_weight != pytest.approx(1e-4, rel=0.1)
    given = objective(schedule={"name": "cosine"}, mask_weight=1e-4)
    assert given.mask_weight == 1e-4
    (remark,) = paper.remarks()
    assert "lambda 0.0001, SNR at timestep 0 of this schedule 9999, lambda x SNR there 0.9999" in remark


def test_the_network_sees_the_image_only_and_gives_image_and_classes():
    model = objective(n_dims=3)
    assert (model.network.settings.in_channels, model.network.settings.out_channels) == (CHANNELS, CHANNELS + CLASSES)
    assert model.network.settings.use_time
