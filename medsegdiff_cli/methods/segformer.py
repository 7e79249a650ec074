"""SegFormer-B3 (Xie et al. 2021): a transformer as baseline, whose encoder has seen ImageNet.

Sauvalle & Salzmann 2024 compare their pretraining with it, in two forms: ImageNet weights, then the labelled images;
and with a training on another labelled dataset in between, which here is `--from RUN` of this method.

Differs from the paper (Xie et al.): the loss is Dice and cross-entropy unless `dice_weight` is 0, with sigmoids for
regions; one learning rate for encoder and head. Other image channels than three: see `methods.deeplabv3`.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.methods.base import Stage
from medsegdiff_cli.methods.public_weights import PublicWeightsSettings, StartsFromPublicWeights
from medsegdiff_cli.methods.supervised import ImageToClasses
from medsegdiff_cli.networks.segformer import SegFormer

_NETWORK = "network."
# Of other classes than the task's: ImageNet's, and those of a published segmentation.
_FOREIGN = ("classifier.", "decode_head.classifier.")


class SegFormerSettings(PublicWeightsSettings):
    """Settings of `segformer`.

    Attributes:
        width: channels of the first of four stages; published weights of B1 to B5 have 64.
        blocks: transformer blocks of the four stages; B3 has (3, 4, 18, 3).
        drop_path: probability with which the last block is left out for an item of a batch; 0.1 in the paper.
        head_width: channels of the head; B2 to B5 have 768.
        dropout: before the last layer; 0.1 in `transformers`.
        dice_weight, cross_entropy_weight: factors of the two loss terms; nnU-Net uses 1 and 1, the paper 0 and 1.
        batch_dice: Dice over the whole batch instead of per patch; filled from the plan.
    """

    width: int = Field(default=64, ge=1)
    blocks: tuple[int, int, int, int] = (3, 4, 18, 3)
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    head_width: int = Field(default=768, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    dice_weight: float = Field(default=1.0, ge=0)
    cross_entropy_weight: float = Field(default=1.0, ge=0)
    batch_dice: bool = False


class SegFormerMethod(ImageToClasses, StartsFromPublicWeights):
    """Image in, class probabilities out."""

    Settings = SegFormerSettings
    stages = (Stage(name="train", supervision="full"),)
    n_transitions: ClassVar[int] = 5
    public_part: ClassVar[str] = f"{_NETWORK}segformer."
    public_file: ClassVar[str] = (
        "the MiT-B3 of ImageNet-1K (nvidia/mit-b3, pytorch_model.bin) as safetensors; docs/methods/segformer.md says "
        "how to convert it"
    )

    def __init__(self, task: Task, settings: SegFormerSettings) -> None:
        super().__init__(task, settings)
        self.network = SegFormer(
            task.in_channels,
            task.n_classes,
            width=settings.width,
            blocks=settings.blocks,
            drop_path=settings.drop_path,
            head_width=settings.head_width,
            dropout=settings.dropout,
        )

    def named_here(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of an encoder's file, or of a whole SegFormer's, without the layers of their classes."""
        return {f"{_NETWORK}{name}": t for name, t in tensors.items() if not name.startswith(_FOREIGN)}
