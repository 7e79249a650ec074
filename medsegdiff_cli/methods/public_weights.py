"""Public weights: initial values from a file that somebody published and the user has on the disk.

Nothing is ever downloaded. The file is read once, when a new training begins; from then on the weights live in the
run's checkpoints, and the run remembers the file's name and sha256. Random initialisation is never a silent fallback:
it has to be asked for by name.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from medsegdiff_cli.methods.base import Method

RANDOM = "random"


class PublicWeightsSettings(BaseModel):
    """Where the initial weights come from, unless training starts from another run.

    Attributes:
        weights: path of a safetensors file, or `random`; the run keeps the file's name alone.
        weights_sha256: digest of that file; filled in when the training is settled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str | None = None
    weights_sha256: str | None = None


class StartsFromPublicWeights(Method):
    """A method whose encoder starts from published weights.

    Class attributes:
        public_file: what to get, for a message, with the page that says how.
        public_part: prefix of the parameters and buffers that the file must fill.
    """

    public_file: ClassVar[str]
    public_part: ClassVar[str]

    @abstractmethod
    def named_here(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of the file's tensors that the method can take, under the names of its own state dict."""
