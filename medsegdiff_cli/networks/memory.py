"""Memory: what one step of a network needs, counted by running the real network on tensors without storage.

The network is built and run under torch's fake tensors: shapes, types and autograd are real, no memory is used and
nothing is computed. Storages are counted once, however many tensors share them. The count is torch's view: scratch
space of kernels and the allocator's slack come on top.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of one step.

    Attributes:
        saved_activations_bytes: training: what the forward pass keeps for the backward pass. Prediction: the largest
            sum of tensors alive at once, inputs and outputs included.
        transient_bytes: the most that forward and backward pass hold for a while beyond saved activations and
            gradients of parameters: what the forward pass drops again, as a frozen network's activations; gradients of
            activations, and activations computed again under gradient checkpointing.
        parameters_bytes: parameters and buffers.
        gradients_bytes: of trainable parameters.
        optimiser_bytes: the optimiser's states, for example two moments of Adam.
        ema_bytes: the moving average of the parameters.
    """

    saved_activations_bytes: int
    transient_bytes: int
    parameters_bytes: int
    gradients_bytes: int
    optimiser_bytes: int
    ema_bytes: int

    @property
    def activations_bytes(self) -> int:
        """What comes and goes with a step, for which kernels also take scratch space."""
        return self.saved_activations_bytes + self.transient_bytes

    @property
    def total_bytes(self) -> int:
        """Sum of all parts."""
        return (
            self.activations_bytes
            + self.parameters_bytes
            + self.gradients_bytes
            + self.optimiser_bytes
            + self.ema_bytes
        )


def measure_step(
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module], Tensor],
    *,
    training: bool,
    optimiser_states_per_parameter: int = 2,
    ema: bool = False,
) -> StepMemory:
    """Return the memory of a training step, or of a forward pass without gradients.

    Args:
        build: makes the network; called under fake tensors.
        loss: makes the inputs, runs the network and returns a scalar (training) or any tensor (prediction). It must
            not read values of tensors (`.item()`, boolean indexing).
        training: count a step of training, with the network in training mode.
        optimiser_states_per_parameter: numbers that the optimiser keeps for each trainable parameter.
        ema: count a moving average of all parameters and buffers.
    """
    with FakeTensorMode():
        network = build().train(training)
        weights = [*network.parameters(), *network.buffers()]
        parameters = sum(_n_bytes(weight) for weight in weights)
        if not training:
            peak = _forward_peak(network, loss)
            return StepMemory(
                saved_activations_bytes=peak,
                transient_bytes=0,
                parameters_bytes=parameters,
                gradients_bytes=0,
                optimiser_bytes=0,
                ema_bytes=0,
            )
        saved, transient = _training_activations(network, loss, weights)
    trainable = sum(_n_bytes(parameter) for parameter in network.parameters() if parameter.requires_grad)
    return StepMemory(
        saved_activations_bytes=saved,
        transient_bytes=transient,
        parameters_bytes=parameters,
        gradients_bytes=trainable,
        optimiser_bytes=trainable * optimiser_states_per_parameter,
        ema_bytes=parameters if ema else 0,
    )


def _forward_peak(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    with torch.no_grad(), _LiveBytes() as live:
        loss(network)
    return live.peak


def _training_activations(
    network: nn.Module, loss: Callable[[nn.Module], Tensor], weights: list[Tensor]
) -> tuple[int, int]:
    """Return the bytes saved for the backward pass, and the most that either pass holds beside them."""
    for parameter in network.parameters():
        # Gradients are there from the start and counted on their own; the backward pass adds to them.
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    saved = _SavedBytes(weights)
    with _LiveBytes() as live:
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
            value = loss(network)
        value.backward()
    return saved.total, max(0, live.peak - saved.total)


class _SavedBytes:
    """Counts the storages that autograd saves, without those of parameters and buffers."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.total = 0
        self._seen = {weight.untyped_storage()._cdata for weight in weights}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.total += storage.nbytes()
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        return tensor


class _LiveBytes(TorchDispatchMode):
    """Follows the bytes of all storages that were made inside, and their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in before and storage not in self._known:
                    self._follow(storage)
        return result

    def _follow(self, storage: Any) -> None:
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, n_bytes: int) -> None:
        self.now -= n_bytes


def _n_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
