"""Arms: what the experiments of a paper train, predict with, and look into."""

from typing import Literal

from pydantic import Field

from medsegdiff_cli.artifacts.document import StrictModel


class WalkProbe(StrictModel):
    """Every step of an iterative method's walks is scored, instead of the prediction alone.

    Attributes:
        draws: walks of each test image, from noise of their own.
    """

    draws: int = Field(ge=1)

    @property
    def name(self) -> str:
        """For the arm's name."""
        return f"walks-{self.draws}"

    @staticmethod
    def dice_at(step: int) -> str:
        """Return the metric's name: Dice after a step, counted from 1, mean over the draws."""
        return f"dice after step {step}"

    @staticmethod
    def range_at(step: int) -> str:
        """Return the metric's name: largest minus smallest Dice of the draws after a step, counted from 1."""
        return f"range after step {step}"


class LeakProbe(StrictModel):
    """A wrong mask is noised and fed as x_t: a network that copies its input follows it instead of the image.

    Attributes:
        timesteps: training timesteps that the mask is noised to.
        shift_voxels: how far the true mask is moved, along the first axis and towards the image's middle.
    """

    timesteps: tuple[int, ...] = Field(min_length=1)
    shift_voxels: int = Field(ge=1)

    @property
    def name(self) -> str:
        """For the arm's name."""
        return f"leak-{self.shift_voxels}"

    @staticmethod
    def to_fed(t: int) -> str:
        """Return the metric's name: Dice of the estimate to the wrong mask that was fed."""
        return f"dice to fed mask at {t}"

    @staticmethod
    def to_truth(t: int) -> str:
        """Return the metric's name: Dice of the estimate to the true mask."""
        return f"dice to truth at {t}"


class Arm(StrictModel):
    """One trained model, and how it predicts or is looked into.

    Attributes:
        labels: labelled cases that it was trained on.
        step: the single timestep that it was trained on; None for the method's own.
        timesteps: those that vote in prediction; None for all.
        sampler, sampling_steps: of an iterative method's walk; None for the method's own.
        probe: what is scored instead of its predictions.
    """

    method: str
    labels: int = Field(ge=1)
    step: int | None = None
    timesteps: tuple[int, ...] | None = None
    sampler: Literal["ddpm", "ddim", "dpm++"] | None = None
    sampling_steps: int | None = None
    probe: WalkProbe | LeakProbe | None = None

    @property
    def run(self) -> str:
        """Name of the training, without what is asked of it later."""
        return f"{self.method}-n{self.labels}" + ("" if self.step is None else f"-t{self.step}")

    @property
    def name(self) -> str:
        """Name of the predictions or of the probe."""
        parts = [self.run]
        if self.timesteps is not None:
            parts.append(f"only-{'-'.join(map(str, self.timesteps))}")
        parts += [str(part) for part in (self.sampler, self.sampling_steps) if part is not None]
        if self.probe is not None:
            parts.append(self.probe.name)
        return "-".join(parts)
