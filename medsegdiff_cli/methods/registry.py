"""All methods and pretraining objectives by name: a new one is one file and one line here.

Nothing is imported until it is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from medsegdiff_cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from medsegdiff_cli.methods.base import Method, Objective, Trainable

T = TypeVar("T", bound="Trainable", covariant=True)

# A pretraining is a run of its own; its recipe, run and record are called after the objective with this in front.
PRETRAINING = "pretrain-"


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registry line.

    Attributes:
        target: "module:Class", resolved on first use.
        title: one line for people.
        source: paper (or origin) of the idea.
        preset: settings that make this name out of its class.
        n_dims: configurations it supports.
        objectives: pretraining objectives that a method can start from, its default first.
    """

    target: str
    title: str
    source: str
    preset: dict[str, Any] = field(default_factory=dict)
    n_dims: tuple[int, ...] = (2, 3)
    objectives: tuple[str, ...] = ()

    def load(self) -> type[T]:
        """Import the class."""
        loaded: type[T] = resolve_name(self.target)
        return loaded


_SMALL_STEPS = (1, 10, 25, 50, 200, 400, 600, 800)
# Whose networks are told a timestep: all that pixel classifiers need.
_WITH_TIME = ("diffusion", "hybrid", "supervised", "global-cl", "global-local-cl")
_MASK_DIFFUSION = "medsegdiff_cli.methods.mask_diffusion:MaskDiffusion"
_PIXEL_PROBES = "medsegdiff_cli.methods.pixel_probes:PixelProbes"
_VANILLA = "medsegdiff_cli.methods.vanilla:Vanilla"

METHODS: "dict[str, Entry[Method]]" = {
    "supervised": Entry(
        "medsegdiff_cli.methods.supervised:Supervised",
        "U-Net trained on labels only: the baseline of every other method",
        "ADM U-Net: Dhariwal & Nichol 2021",
    ),
    "tedm": Entry(
        _PIXEL_PROBES,
        "One pixel classifier shared by eight timesteps of a frozen diffusion model, which vote",
        "Rosnati et al. 2023",
        preset={"timesteps": _SMALL_STEPS, "shared": True},
        objectives=_WITH_TIME,
    ),
    "ledm": Entry(
        _PIXEL_PROBES,
        "Pixel classifiers on the joined features of three timesteps of a frozen diffusion model",
        "Baranchuk et al. 2022",
        preset={"timesteps": (50, 150, 250), "shared": False},
        objectives=_WITH_TIME,
    ),
    "ledme": Entry(
        _PIXEL_PROBES,
        "LEDM on TEDM's eight timesteps",
        "Rosnati et al. 2023",
        preset={"timesteps": _SMALL_STEPS, "shared": False},
        objectives=_WITH_TIME,
    ),
    "step-probe": Entry(
        _PIXEL_PROBES,
        "Ridge logistic regression on the features of one timestep: which timesteps know about the classes",
        "Rosnati et al. 2023, appendix B",
        preset={"timesteps": (1,), "shared": True, "hidden": (), "l2": 1e-4},
        objectives=_WITH_TIME,
    ),
    "vanilla": Entry(
        _VANILLA,
        "Network of any pretraining on clean images, at its least-noise timestep; without --from, from scratch",
        "Rousseau et al. 2024 (PTDR)",
    ),
    "ptdr": Entry(
        _VANILLA,
        "Vanilla fine-tuning of a diffusion model",
        "Rousseau et al. 2024 (PTDR)",
        objectives=("diffusion",),
    ),
    "hybrid": Entry(
        _VANILLA,
        "Vanilla fine-tuning of a diffusion model that also predicted masks",
        "Sauvalle & Salzmann 2024",
        objectives=("hybrid",),
    ),
    "transfer": Entry(
        _VANILLA,
        "Vanilla fine-tuning of a network that was trained on labels",
        "Sauvalle & Salzmann 2024, Table 2",
        objectives=("supervised",),
    ),
    "hybrid-ledm": Entry(
        _PIXEL_PROBES,
        "LEDM on the features of a diffusion model that also predicted masks",
        "Sauvalle & Salzmann 2024, Table 2",
        preset={"timesteps": (50, 150, 250), "shared": False},
        objectives=("hybrid",),
    ),
    "global-cl": Entry(
        _VANILLA,
        "Vanilla fine-tuning of an encoder that told patches apart",
        "Chen et al. 2020 (SimCLR), as in Rosnati et al. 2023",
        objectives=("global-cl",),
    ),
    "global-local-cl": Entry(
        _VANILLA,
        "Vanilla fine-tuning of a network that told patches, then their regions apart",
        "Chaitanya et al. 2020, as in Rosnati et al. 2023",
        objectives=("global-local-cl",),
    ),
    "recycling": Entry(
        _MASK_DIFFUSION,
        "Diffusion on masks that learns to refine its own first estimate",
        "Fu et al. 2023 (ImgX)",
        preset={"strategy": "recycling"},
    ),
    "mask-diffusion": Entry(
        _MASK_DIFFUSION,
        "Diffusion on masks that learns from the noised truth",
        "Fu et al. 2023, Eq. 4",
        preset={"strategy": "ground-truth"},
    ),
    "recycling-next": Entry(
        _MASK_DIFFUSION,
        "Recycling whose first estimate is made one timestep before the second",
        "Fu et al. 2023 (arXiv 2303.06040)",
        preset={"strategy": "recycling-next"},
    ),
    "self-conditioning": Entry(
        _MASK_DIFFUSION,
        "Diffusion on masks that is told its own estimate at the same timestep",
        "Chen et al. 2022 (Analog Bits)",
        preset={"strategy": "self-conditioning"},
    ),
    "self-conditioning-next": Entry(
        _MASK_DIFFUSION,
        "Diffusion on masks that is told its own estimate of the timestep before",
        "Watson et al. 2023 (RFdiffusion)",
        preset={"strategy": "self-conditioning-next"},
    ),
    "deeplabv3": Entry(
        "medsegdiff_cli.methods.deeplabv3:DeepLab",
        "DeepLabv3 with a ResNet-50, from ImageNet weights in a local file: a baseline of other make",
        "Chen et al. 2017",
        n_dims=(2,),
    ),
    "segformer": Entry(
        "medsegdiff_cli.methods.segformer:SegFormerMethod",
        "SegFormer-B3, from ImageNet weights in a local file: a baseline of other make",
        "Xie et al. 2021",
        n_dims=(2,),
    ),
}

OBJECTIVES: "dict[str, Entry[Objective]]" = {
    "diffusion": Entry(
        "medsegdiff_cli.methods.denoising:Denoising",
        "Denoising diffusion on images, labels unseen",
        "Ho et al. 2020",
    ),
    "hybrid": Entry(
        "medsegdiff_cli.methods.hybrid:Hybrid",
        "Denoising diffusion on images whose network also predicts the mask, where there is a label",
        "Sauvalle & Salzmann 2024",
    ),
    "supervised": Entry(
        "medsegdiff_cli.methods.vanilla:SupervisedPretraining",
        "Segmentation of clean images by the network of a diffusion model, at its least-noise timestep",
        "Sauvalle & Salzmann 2024",
    ),
    "global-cl": Entry(
        "medsegdiff_cli.methods.contrastive:GlobalContrast",
        "Contrast of whole patches: two views of one are alike, labels unseen",
        "Chen et al. 2020 (SimCLR)",
    ),
    "global-local-cl": Entry(
        "medsegdiff_cli.methods.contrastive:GlobalLocalContrast",
        "Contrast of whole patches, then of regions of the decoder's features, labels unseen",
        "Chaitanya et al. 2020",
    ),
}


def find_method(name: str) -> "Entry[Method]":
    """Return the registry line of a method.

    Raises:
        UsageError: no such method.
    """
    if name in OBJECTIVES and name not in METHODS:
        starting = ", ".join(method for method, entry in METHODS.items() if name in entry.objectives)
        raise UsageError(
            f"'{name}' is a pretraining, no method",
            where="METHOD",
            fix=f"msd pretrain {name}; methods that start from it: {starting}",
        )
    return _find(name, METHODS, "METHOD")


def find_objective(name: str) -> "Entry[Objective]":
    """Return the registry line of a pretraining objective.

    Raises:
        UsageError: no such objective.
    """
    return _find(name, OBJECTIVES, "OBJECTIVE")


def find_trainable(name: str) -> "Entry[Method] | Entry[Objective]":
    """Return the registry line of a method, or of an objective by the name of its runs (`pretrain-OBJECTIVE`).

    Raises:
        UsageError: neither is called so.
    """
    if is_pretraining(name):
        return find_objective(name.removeprefix(PRETRAINING))
    return find_method(name)


def is_pretraining(name: str) -> bool:
    """Return whether a run of this name is a pretraining, which cannot predict."""
    return name.startswith(PRETRAINING)


def _find(name: str, entries: Mapping[str, Entry[T]], where: str) -> Entry[T]:
    if name not in entries:
        raise UsageError(f"no {where.lower()} '{name}'", where=where, fix=did_you_mean(name, entries))
    return entries[name]
