"""The memory count of a step: by hand for one layer, and against real runs of the U-Net."""

from functools import partial

import pytest
import torch
from torch import nn

from medsegdiff_cli.losses import dice_and_cross_entropy
from medsegdiff_cli.networks.adm_unet import ADMSettings, ADMUNet, parameter_count
from medsegdiff_cli.networks.blocks import AttentionBlock
from medsegdiff_cli.networks.memory import measure_step

FLOAT = 4


def one_conv() -> nn.Module:
    return nn.Conv2d(1, 4, 3, padding=1)


def conv_sum(network: nn.Module) -> torch.Tensor:
    return network(torch.zeros(2, 1, 10, 10)).sum()


def unet(**changes) -> ADMUNet:
    values = {"n_dims": 2, "model_channels": 16, "channel_mult": (1, 2, 2), "num_res_blocks": 1}
    return ADMUNet(ADMSettings(in_channels=1, out_channels=3, **(values | {"attention_levels": (2,)} | changes)))


def step(batch=2, size=32, n_dims=2):
    spatial = (size,) * n_dims

    def loss(network: nn.Module) -> torch.Tensor:
        logits = network(torch.zeros(batch, 1, *spatial), torch.zeros(batch))
        label, valid = torch.zeros(batch, *spatial, dtype=torch.long), torch.ones(batch, *spatial, dtype=torch.bool)
        return torch.stack(
            [*dice_and_cross_entropy(logits, label, valid, exclusive=True, batch_dice=True).values()]
        ).sum()

    return loss


def test_one_convolution_is_counted_as_by_hand():
    memory = measure_step(one_conv, conv_sum, training=True, optimiser_states_per_parameter=2, ema=True)
    n_parameters = 4 * 1 * 9 + 4
    # A convolution keeps its input for the gradient of its weights; a sum keeps nothing.
    assert memory.saved_activations_bytes == 2 * 1 * 10 * 10 * FLOAT
    assert memory.parameters_bytes == memory.gradients_bytes == memory.ema_bytes == n_parameters * FLOAT
    assert memory.optimiser_bytes == 2 * n_parameters * FLOAT
    parts = [value for name, value in vars(memory).items()]
    assert memory.total_bytes == sum(parts)


def test_a_prediction_keeps_the_largest_neighbours_only():
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1))

    memory = measure_step(build, lambda network: network(torch.zeros(1, 1, 8, 8)), training=False)
    # The input (1 channel), which the caller still holds, and both sides (4 and 4) of the layer in the middle.
    assert memory.saved_activations_bytes == (1 + 4 + 4) * 64 * FLOAT
    assert memory.gradients_bytes == memory.optimiser_bytes == memory.ema_bytes == memory.transient_bytes == 0


def test_frozen_parameters_need_no_gradient_and_no_optimiser_state():
    def build() -> nn.Module:
        return nn.Sequential(one_conv().requires_grad_(False), nn.Conv2d(4, 1, 1))

    memory = measure_step(build, conv_sum, training=True)
    assert memory.gradients_bytes == (4 + 1) * FLOAT
    assert memory.optimiser_bytes == 2 * (4 + 1) * FLOAT


@pytest.mark.parametrize("n_dims", [2, 3])
def test_activations_double_with_the_batch(n_dims):
    single, double = (
        measure_step(lambda: unet(n_dims=n_dims), step(batch, 16, n_dims), training=True) for batch in (1, 2)
    )
    assert double.saved_activations_bytes / single.saved_activations_bytes == pytest.approx(2, rel=0.01)
    assert double.parameters_bytes == single.parameters_bytes


def test_the_count_agrees_with_what_a_real_step_saves():
    network = unet().train()
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = step()(network)
    assert value.requires_grad
    memory = measure_step(unet, step(), training=True)
    assert memory.saved_activations_bytes == pytest.approx(sum(saved.values()), rel=0.01)
    assert memory.parameters_bytes == parameter_count(network) * FLOAT


def test_what_a_frozen_part_drops_again_counts_while_it_is_there():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 16, 1), nn.Conv2d(16, 1, 1)).requires_grad_(False)
            self.head = nn.Conv2d(1, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = self.body(x)
            return self.head(x)

    memory = measure_step(Frozen, lambda network: network(torch.zeros(1, 1, 8, 8)).sum(), training=True)
    # Kept: the head's input. For a while: the image and 16 features, and beside them the body's output.
    assert memory.saved_activations_bytes == 64 * FLOAT
    assert memory.saved_activations_bytes + memory.transient_bytes == (1 + 16 + 1) * 64 * FLOAT


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_count_agrees_with_the_allocator_of_a_real_step(training, checkpointing):
    def build() -> nn.Module:
        return unet(gradient_checkpointing=checkpointing)

    network = build().train(training)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
        torch.set_grad_enabled(training),
    ):
        value = step(size=64)(network)
        if training:
            value.backward()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    memory = measure_step(build, step(size=64), training=training)
    # The allocator also sees the scratch space of kernels, which torch does not know of.
    assert memory.saved_activations_bytes + memory.transient_bytes == pytest.approx(peak, rel=0.3)


def test_attention_never_keeps_a_matrix_of_all_pairs_of_voxels():
    def build() -> nn.Module:
        return AttentionBlock(32, num_head_channels=32, num_groups=32)

    small, large = (
        measure_step(build, lambda network, size=size: network(torch.zeros(1, 32, size, size)).sum(), training=True)
        for size in (16, 64)
    )
    # 16 times the voxels need 16 times the memory; pairs would need 256 times.
    assert large.saved_activations_bytes / small.saved_activations_bytes == pytest.approx(16, rel=0.02)


def test_checkpointing_saves_memory():
    plain = measure_step(partial(unet, num_res_blocks=2), step(), training=True)
    less = measure_step(partial(unet, num_res_blocks=2, gradient_checkpointing=True), step(), training=True)
    assert less.saved_activations_bytes < plain.saved_activations_bytes / 3
    assert less.total_bytes < plain.total_bytes


def test_counting_a_network_that_fits_no_memory_uses_none():
    # One feature map of the finest level alone: 64 patches x 16 features x 256**3 voxels x 4 bytes = 64 GB.
    memory = measure_step(
        lambda: unet(n_dims=3, attention_levels=()), step(batch=64, size=256, n_dims=3), training=True
    )
    assert memory.total_bytes > 10 * 64 * 2**30
