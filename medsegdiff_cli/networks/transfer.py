"""Transfer: what of a trained network's weights fits another one, tensor by tensor, for a table that people read.

Used when the datasets or the aims differ: other image channels change the input layer, other classes the output layer,
and a network that says an image has other rows there than one that says classes. A network names these layers by class
attributes `input_layer` and `output_layer`, names of its submodules.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Status = Literal["loaded", "adapted", "new", "unused"]


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """What became of one tensor.

    Attributes:
        name: of the tensor.
        status: `loaded` as it is; `adapted` to another number of image channels, or from some rows of the source's
            output layer; `new`, kept at its initial value, because the source has none of that name, shape and
            meaning; `unused`, a tensor of the source without a place.
        source_shape, target_shape: None where it does not exist.
    """

    name: str
    status: Status
    source_shape: tuple[int, ...] | None
    target_shape: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Weights for the target, and where they come from.

    Attributes:
        state: complete, for `target.load_state_dict(state)`; new tensors have the target's present values.
        rows: the target's tensors in its order, then the unused ones.
        coverage: share of the target's counted numbers that are loaded or adapted, 0 to 1.
    """

    state: dict[str, Tensor]
    rows: tuple[TransferRow, ...]
    coverage: float


def adapt_state(
    state: Mapping[str, Tensor],
    target: nn.Module,
    counted: tuple[str, ...] = ("",),
    output_rows: slice | None = slice(None),
) -> Transfer:
    """Return what of `state` the `target` can take; the caller decides which coverage is enough.

    Tensors equal in name and shape are taken. An input layer with another number of channels gets the mean over the
    old channels, scaled so that an image repeated over the channels gives the same features. All else is new: an
    output layer of another number of classes too.

    Args:
        counted: prefixes of the names that the coverage counts.
        output_rows: rows of the source's output layer that mean what the target's do; None: it has none.
    """
    adaptable = {f"{name}.weight" for name in input_layers(target)}
    outputs = {f"{name}.{part}" for name in _named_by(target, "output_layer") for part in ("weight", "bias")}
    fitted: dict[str, Tensor] = {}
    rows: list[TransferRow] = []
    n_covered = n_total = 0
    for name, present in target.state_dict().items():
        found = source = state.get(name)
        if found is not None and name in outputs:
            source = None if output_rows is None else found[output_rows]
        status = _status(source, present, name in adaptable)
        if status == "loaded" and found is not None and found.shape != present.shape:
            status = "adapted"
        if source is None or status == "new":
            fitted[name] = present
        elif status == "adapted" and name in adaptable:
            fitted[name] = _with_channels(source, present.shape[1]).to(present)
        else:
            fitted[name] = source.to(present)
        if name.startswith(counted):
            n_total += present.numel()
            n_covered += present.numel() if status != "new" else 0
        source_shape = None if found is None else tuple(found.shape)
        rows.append(TransferRow(name=name, status=status, source_shape=source_shape, target_shape=tuple(present.shape)))
    for name in state:
        if name not in fitted:
            shape = tuple(state[name].shape)
            rows.append(TransferRow(name=name, status="unused", source_shape=shape, target_shape=None))
    return Transfer(state=fitted, rows=tuple(rows), coverage=n_covered / max(n_total, 1))


def _status(source: Tensor | None, present: Tensor, is_input: bool) -> Status:
    if source is None:
        return "new"
    if source.shape == present.shape:
        return "loaded"
    same_rank = source.ndim == present.ndim >= 2
    but_channels = same_rank and source.shape[:1] + source.shape[2:] == present.shape[:1] + present.shape[2:]
    return "adapted" if is_input and but_channels else "new"


def _with_channels(weight: Tensor, n_channels: int) -> Tensor:
    """Return `weight` (feature, channel, *kernel) with `n_channels` equal channels of the same sum."""
    shared = weight.sum(dim=1, keepdim=True) / n_channels
    return shared.expand(-1, n_channels, *(-1,) * (weight.ndim - 2)).contiguous()


def adaptation_data(target: nn.Module) -> dict[str, list[str]]:
    """Return what is what in the networks of `target`: part to the beginnings of the tensors' names.

    `stem` is the layer that depends on the image's channels, `head` the one whose rows are the output's channels;
    `encoder` (stem and `time_embedding` included), `middle` and `decoder` (head included) are the whole network. What
    a network has not, or does not say, is an empty list.
    """
    attributes = {
        "stem": "input_layer",
        "head": "output_layer",
        "time_embedding": "time_parts",
        "encoder": "encoder_parts",
        "middle": "middle_parts",
        "decoder": "decoder_parts",
    }
    tensors = list(target.state_dict())
    found: dict[str, list[str]] = {}
    for part, attribute in attributes.items():
        names = [f"{name}." for name in _named_by(target, attribute)]
        found[part] = [name for name in names if any(tensor.startswith(name) for tensor in tensors)]
    return found


def input_layers(target: nn.Module) -> Iterator[str]:
    """Yield the names of the layers whose second axis are the image's channels."""
    return _named_by(target, "input_layer")


def _named_by(target: nn.Module, attribute: str) -> Iterator[str]:
    """Yield the submodules that networks in `target` name by an attribute, a name or several."""
    for prefix, module in target.named_modules():
        names = getattr(module, attribute, ())
        for name in (names,) if isinstance(names, str) else names if isinstance(names, tuple) else ():
            yield f"{prefix}.{name}" if prefix else name
