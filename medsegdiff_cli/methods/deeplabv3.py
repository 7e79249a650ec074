"""DeepLabv3 with a ResNet-50 (Chen et al. 2017): a convolutional baseline whose encoder has seen ImageNet.

Sauvalle & Salzmann 2024 compare their pretraining with it, in two forms: ImageNet weights, then the labelled images;
and with a training on another labelled dataset in between, which here is `--from RUN` of this method.

Differs from the paper (Chen et al.): the loss is Dice and cross-entropy unless `dice_weight` is 0, with sigmoids for
regions; the batch norms are trained in one go, at output stride 8 throughout. With another number of image channels
than three, the first convolution's weights are summed over their channels and shared evenly, so that a grey image gives
the features of its three-channel copy.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.methods.base import Stage
from medsegdiff_cli.methods.public_weights import PublicWeightsSettings, StartsFromPublicWeights
from medsegdiff_cli.methods.supervised import ImageToClasses
from medsegdiff_cli.networks.deeplabv3 import DeepLabV3

_NETWORK, _BACKBONE = "network.", "backbone."
# Of other classes than the task's: ImageNet's, and those of two heads of torchvision's DeepLabv3.
_FOREIGN = ("fc.", "aux_classifier.", "classifier.4.")


class DeepLabV3Settings(PublicWeightsSettings):
    """Settings of `deeplabv3`.

    Attributes:
        width: channels of the encoder's first convolution; published weights have 64.
        blocks: bottlenecks of the encoder's four stages; ResNet-50 has (3, 4, 6, 3).
        dropout: behind the pyramid's joined branches; 0.5 as in torchvision.
        dice_weight, cross_entropy_weight: factors of the two loss terms; nnU-Net uses 1 and 1, the paper 0 and 1.
        batch_dice: Dice over the whole batch instead of per patch; filled from the plan.
    """

    width: int = Field(default=64, ge=1)
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    dice_weight: float = Field(default=1.0, ge=0)
    cross_entropy_weight: float = Field(default=1.0, ge=0)
    batch_dice: bool = False


class DeepLab(ImageToClasses, StartsFromPublicWeights):
    """Image in, class probabilities out."""

    Settings = DeepLabV3Settings
    stages = (Stage(name="train", supervision="full"),)
    n_transitions: ClassVar[int] = 3
    public_part: ClassVar[str] = f"{_NETWORK}{_BACKBONE}"
    public_file: ClassVar[str] = (
        "torchvision's ResNet-50 of ImageNet (resnet50-0676ba61.pth, ResNet50_Weights.IMAGENET1K_V1) as safetensors; "
        "docs/methods/deeplabv3.md says how to convert it"
    )

    def __init__(self, task: Task, settings: DeepLabV3Settings) -> None:
        super().__init__(task, settings)
        self.network = DeepLabV3(
            task.in_channels,
            task.n_classes,
            width=settings.width,
            blocks=settings.blocks,
            dropout=settings.dropout,
        )

    def named_here(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a ResNet's file, or of a whole DeepLabv3's, without the layers of their classes."""
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_FOREIGN)}
        prefix = _NETWORK if any(name.startswith(_BACKBONE) for name in own) else f"{_NETWORK}{_BACKBONE}"
        return {f"{prefix}{name}": tensor for name, tensor in own.items()}
