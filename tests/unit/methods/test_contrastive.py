"""Contrastive pretraining: what each stage trains and compares, where regions lie, and that views come together."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.base import enter_stage, parameters_of_stage
from medsegdiff_cli.methods.contrastive import (
    GlobalContrast,
    GlobalContrastSettings,
    GlobalLocalContrast,
    GlobalLocalContrastSettings,
)

SMALL = {
    "model_channels": 8,
    "channel_mult": (1, 2, 2),
    "num_res_blocks": 1,
    "attention_levels": (),
    "hidden_features": 16,
    "projected_features": 8,
}
NETWORKS = ("adm", "tedm", "imgx", "diffusers-unet2d")
OF_THE_DECODER = {
    "adm": ("output_blocks.0.", "output_blocks.1.", "output_blocks.2."),
    "tedm": ("up_levels.0.", "up_resamplers.0.", "up_levels.1."),
    "imgx": ("up_levels.0.", "upsamplers.0.", "up_levels.1."),
    "diffusers-unet2d": ("unet.up_blocks.0.", "unet.up_blocks.1."),
}


def task(n_dims=2):
    return Task(n_dims=n_dims, in_channels=1, class_names=("background", "organ"))


def small(network):
    # The transformer of `imgx` is at its coarsest level.
    return {**SMALL, "network": network, **({"num_head_channels": 4} if network == "imgx" else {})}


def local(n_dims=2, network="tedm", **settings):
    return GlobalLocalContrast(task(n_dims), GlobalLocalContrastSettings(**{**small(network), **settings}))


def batch_of(n=3, shape=(16, 16), seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 1, *shape, generator=random)
    return Batch(
        image=images,
        label=None,
        valid=None,
        case_ids=("x",) * n,
        positions=torch.arange(n),
        views=(images + 0.3 * torch.randn(images.shape, generator=random),),
    )


def noise(n=3, order=None):
    return NoiseSource([("contrast", item) for item in (order or range(n))])


def reached(model, stage):
    """Return the parts of the model that a loss moves, whether they may be trained or not."""
    model.requires_grad_(True)
    model.loss(batch_of(), stage, noise())[stage.name].backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_global_stage_trains_the_encoder_and_its_head_and_the_decoder_not(network):
    model = GlobalContrast(task(), GlobalContrastSettings(**small(network)))
    (stage,) = model.stages
    trained = set(parameters_of_stage(model, stage))
    assert trained == reached(model, stage)
    before = model.network.encoder_parts + model.network.middle_parts
    parts = tuple(f"network.{part}." for part in before)
    assert trained == {name for name in dict(model.named_parameters()) if name.startswith((*parts, "global_head."))}
    assert any(name.startswith("network.") for name in dict(model.named_parameters()) if name not in trained)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("trains_head", [True, False])
def test_the_local_stage_trains_two_levels_of_the_decoder_and_the_head_unless_it_is_frozen(network, trains_head):
    model = local(network=network, trains_local_head=trains_head)
    stage = model.stages[1]
    levels = tuple(f"network.{part}" for part in OF_THE_DECODER[network])
    head = ("local_head.",) if trains_head else ()
    names = dict(model.named_parameters())
    trained = set(parameters_of_stage(model, stage))
    assert trained == {name for name in names if name.startswith((*levels, *head))}
    assert trained | {name for name in names if name.startswith("local_head.")} <= reached(model, stage)
    assert [s.name for s in model.stages] == [s.name for s in GlobalLocalContrast.stages] == ["global", "local"]


def test_a_frozen_head_has_no_statistics_that_could_drift():
    model = local(trains_local_head=False)
    enter_stage(model, model.stages[1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.loss(batch_of(), model.stages[1], noise())["local"].backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not [name for name in before if name.startswith("local_head") and "running" in name]


def test_the_network_is_told_the_least_noise_timestep_and_no_label_is_looked_at():
    model, batch = GlobalContrast(task(), GlobalContrastSettings(**small("tedm"))), batch_of()
    stage = model.stages[0]
    labelled = replace(batch, label=torch.full((3, 16, 16), 200))
    assert torch.equal(model.loss(batch, stage, noise())["global"], model.loss(labelled, stage, noise())["global"])
    views = torch.cat([batch.image, *batch.views])
    features = model.network.coarsest(views, torch.zeros(6, dtype=torch.long))
    assert features.shape == (6, 16, 4, 4)
    projected = F.normalize(model.global_head(features.mean((2, 3))), dim=1)
    similarity = (projected @ projected.T / 0.1).fill_diagonal_(-math.inf)
    positive = torch.arange(6).roll(3)
    expected = F.cross_entropy(similarity, positive)
    torch.testing.assert_close(model.loss(batch, stage, noise())["global"], expected)
    with pytest.raises(ValueError, match="two views"):
        model.loss(replace(batch, views=()), stage, noise())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_coarsest_features_are_those_that_the_decoder_takes(network):
    model = GlobalContrast(task(), GlobalContrastSettings(**small(network))).eval()
    image, t, seen = batch_of().image, torch.zeros(3, dtype=torch.long), []
    middle = model.network.get_submodule(model.network.middle_parts[0])
    last = middle[-1] if isinstance(middle, torch.nn.ModuleList) else middle
    last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.network(image, t)
    assert torch.equal(seen[0], model.network.coarsest(image, t))
    with pytest.raises(ValueError, match="timestep"):
        model.network.coarsest(image)


def test_features_are_pooled_to_cells_and_as_many_as_there_are_is_all_of_them():
    whole = GlobalContrast(task(), GlobalContrastSettings(**small("tedm"), pooled_size=4))
    features = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(whole._projected(features), whole.global_head(features.flatten(1)))
    halves = GlobalContrast(task(3), GlobalContrastSettings(**small("tedm"), pooled_size=2))
    features = torch.randn(2, 16, 4, 4, 4)
    cells = features.unflatten(4, (2, 2)).unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5, 7))
    torch.testing.assert_close(halves._projected(features), halves.global_head(cells.flatten(1)))


@pytest.mark.parametrize("shape", [(13, 16), (7, 12, 16), (3, 8, 8), (1, 9)])
def test_regions_are_boxes_of_the_map_at_the_same_place_in_all_and_never_overlap(shape):
    model = local(len(shape), regions=1000)
    n = math.prod(shape)
    index = torch.arange(n, dtype=torch.float64).reshape(shape)
    maps = torch.stack([torch.stack([index + 1000 * channel for channel in range(2)])] * 4)  # two views of two items
    found = model._regions(maps, noise(2))
    edges = [min(3, max(1, extent // 2)) for extent in shape]
    assert found.shape == (4, math.prod(e // w for e, w in zip(shape, edges, strict=True)), 2 * math.prod(edges))
    assert torch.equal(found[0], found[3])
    own = found[0].unflatten(1, (math.prod(edges), 2))
    assert torch.equal(own[..., 1], own[..., 0] + 1000)
    voxels = own[..., 0].flatten()
    assert len(voxels.unique()) == len(voxels)
    for region in own[..., 0]:
        corners = [[int(v) // math.prod(shape[axis + 1 :]) % shape[axis] for v in region] for axis in range(len(shape))]
        assert [max(c) - min(c) + 1 for c in corners] == edges


def test_some_regions_are_drawn_and_the_order_of_the_patches_does_not_matter():
    model = local(regions=5)
    maps = torch.arange(22.0 * 22).reshape(1, 1, 22, 22)
    draws = [model._regions(maps, noise(order=order)) for order in ((0, 1, 2), (2, 0, 1), (0, 1, 3))]
    assert draws[0].shape == (1, 5, 9)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("across", [False, True])
def test_the_local_loss_is_that_of_each_patch_or_pair_of_patches_written_out(n_dims, across):
    model, shape = local(n_dims, regions=4, across_images=across, local_levels=3), (16,) * n_dims
    batch, stage = batch_of(3, shape), model.stages[1]
    views = torch.cat([batch.image, *batch.views])
    (features,) = model.network(views, torch.zeros(6, dtype=torch.long), taps=[2])
    assert features.shape[2:] == shape
    regions = F.normalize(model._regions(model.local_head(features), noise()), dim=2).reshape(2, 3, 4, -1)
    terms = []
    for i in range(3):
        for j in range(3) if across else [i]:
            similarity = regions[0, i] @ regions[1, j].T / 0.1
            terms += [F.cross_entropy(similarity, torch.arange(4)), F.cross_entropy(similarity.T, torch.arange(4))]
    torch.testing.assert_close(model.loss(batch, stage, noise())["local"], torch.stack(terms).mean())


def test_views_are_aligned_where_the_settings_say_so_and_a_level_that_is_not_there_is_refused():
    assert [stage.aligned for stage in local().stages] == [False, True]
    assert [stage.aligned for stage in local(aligned_views=False).stages] == [False, False]
    assert all(stage.views == 2 and stage.supervision == "none" for stage in local().stages)
    with pytest.raises(UsageError, match="local_levels 4: the decoder has 3"):
        local(local_levels=4)


def test_after_some_steps_views_of_one_image_are_closer_than_two_images():
    torch.manual_seed(0)
    model = GlobalContrast(task(), GlobalContrastSettings(**small("tedm")))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    # Gratings of some direction; a view moves them and changes their contrast and brightness.
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")

    def views(angles, random):
        phase, gain, offset = torch.rand(3, len(angles), 1, 1, generator=random)
        wave = torch.sin((x * angles.cos()[:, None, None] + y * angles.sin()[:, None, None]) + 6.28 * phase)
        return ((0.7 + 0.6 * gain) * wave + 0.6 * offset - 0.3)[:, None]

    def batch(angles, seed):
        random = torch.Generator().manual_seed(seed)
        first, second = views(angles, random), views(angles, random)
        return replace(batch_of(len(angles)), image=first, views=(second,))

    def gap(angles):
        seen = batch(angles, 1000)
        both = torch.cat([seen.image, *seen.views])
        with torch.no_grad():
            projected = model._projected(model.network.coarsest(both, torch.zeros(len(both), dtype=torch.long)))
        similarity = F.cosine_similarity(projected[: len(angles), None], projected[None, len(angles) :], dim=2)
        same = similarity.diagonal().mean()
        return float(same - (similarity.sum() - similarity.diagonal().sum()) / (similarity.numel() - len(angles)))

    unseen = torch.tensor([0.1, 0.9, 1.7, 2.5])
    before = gap(unseen)
    for step in range(60):
        angles = 3.14 * torch.rand(8, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        model.loss(batch(angles, step), model.stages[0], noise(8))["global"].backward()
        optimiser.step()
    assert gap(unseen) > max(0.3, before + 0.2)
