"""Recipe: the settings of a method, as shipped (`plans/*.yaml`) and as resolved for a run.

Precedence, lowest first: field default, recipe preset, scale table, values derived from the plan, `--set key=value`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel, read_yaml, validate
from medsegdiff_cli.artifacts.plan import Scale
from medsegdiff_cli.artifacts.postprocessing import Postprocessing
from medsegdiff_cli.errors import UsageError, did_you_mean

ValidationMetric = Literal["dice", "iou", "dataset_iou"]
SECTIONS = ("plan", "method", "training", "augmentation", "prediction")


class TrainingSettings(StrictModel):
    """How a stage is optimised; everything a method need not know.

    Attributes:
        steps: optimiser steps of the stage.
        patch_size_voxels, batch_size: None takes the plan's, fitted to the memory and the scale.
        betas: of Adam and AdamW; momentum: of SGD.
        layer_decay: the learning rate of a layer is `learning_rate` x layer_decay^depth, the depth being 0 for the
            output layer and one more for each layer before it (Clark et al. 2020; Bao et al. 2022); 1: equal for all.
        learning_rate_factors: further factors by the beginning of a parameter's name, whole parts of it, for example
            `network.out`; of several the longest counts.
        schedule: learning rate after the linear warm-up: to `final_learning_rate` along a cosine or nnU-Net's poly
            (0.9), or constant; `decay_steps` after the warm-up if these are fewer than are left.
        gradient_clip: largest global norm, or None.
        ema_decay: of the weights that predict, or None to predict with the raw ones.
        precision: autocast type; `auto` takes bfloat16 where the hardware multiplies it natively.
        foreground_share: share of a batch's patches that are centred on foreground (rounded, the last ones).
        drop_empty_slices: 2D configurations of volumes train on slices with foreground only.
        validate_every_steps: None validates about 10 times a training; 0 never.
        validate_every_epochs: the same in epochs of ceil(labelled training cases / batch_size) steps, turned into
            steps when the training is settled; patches are drawn with replacement all the same.
        validation_cases: at most so many cases are predicted per validation.
        validation_samplers: of a method that samples, the samplers to validate with beside its own, each keeping best
            weights of its own, which predict with that sampler where `selection` is `best`.
        validation_metric: target metric of validations: by it the best weights are selected and `patience` judged.
            `dice` and `iou` are means over cases, then over classes; `dataset_iou` adds up intersections and unions of
            all cases, then takes the mean over the classes that occur, the background among them. Each is computed on
            the network's grid.
        selection: which weights predict by default: `last`, or `best` on the validation cases.
        patience: validations without improvement after which training stops, or None.
        checkpoint_minutes: time between checkpoints.
        feature_cache: keep a frozen network's features on disk while training, as float16; it pays where images repeat
            unchanged (no augmentation, whole images, shared noise).
    """

    steps: int = Field(default=50_000, ge=1)
    patch_size_voxels: tuple[int, ...] | None = None
    batch_size: int | None = Field(default=None, ge=1)
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    final_learning_rate: float = Field(default=0.0, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    learning_rate_factors: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.99
    weight_decay: float = Field(default=1e-2, ge=0)
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup_steps: int = Field(default=100, ge=0)
    decay_steps: int | None = Field(default=None, ge=1)
    gradient_clip: float | None = 1.0
    ema_decay: float | None = Field(default=0.999, gt=0, lt=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    foreground_share: float = Field(default=0.33, ge=0, le=1)
    drop_empty_slices: bool = False
    validate_every_steps: int | None = Field(default=None, ge=0)
    validate_every_epochs: int | None = Field(default=None, ge=1)
    validation_cases: int = Field(default=8, ge=1)
    validation_samplers: tuple[Literal["ddpm", "ddim", "dpm++"], ...] = ()
    validation_metric: ValidationMetric = "dice"
    selection: Literal["last", "best"] = "last"
    patience: int | None = Field(default=None, ge=1)
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    feature_cache: bool = False


class AugmentationSettings(StrictModel):
    """Random transforms of training patches; the defaults are nnU-Net's list and probabilities.

    Attributes:
        rotation_degrees: range per axis; None takes nnU-Net's rule (30 in 3D, 180 in 2D, 15 in long 2D patches).
        translation_voxels: range, of all axes or of each one.
        order: spline order of image interpolation.
        border_crop: largest share of the patch's edge that is cut off at each side, drawn for every side on its own;
            what is left is stretched to the patch again (of a patch of thick slices: within the slices).
        crop: least share of the patch's edge that a crop keeps; along each axis its beginning is drawn first, then how
            much of the rest it keeps, and what is kept is stretched to the patch again (Rosnati et al. 2023: 0.75).
        offset: range of a number that is added to each channel.
        mirror: along the mirror axes, each with probability 0.5.
        mirror_axes: axes of the patch (0 first); None takes the plan's mirror axes.
    """

    p_rotation: float = Field(default=0.2, ge=0, le=1)
    rotation_degrees: float | None = None
    p_scaling: float = Field(default=0.2, ge=0, le=1)
    scaling: tuple[float, float] = (0.7, 1.4)
    p_translation: float = Field(default=0.0, ge=0, le=1)
    translation_voxels: float | tuple[float, ...] = 0.0
    order: int = Field(default=1, ge=0, le=3)
    p_noise: float = Field(default=0.1, ge=0, le=1)
    noise_variance: tuple[float, float] = (0.0, 0.1)
    p_blur: float = Field(default=0.2, ge=0, le=1)
    blur_sigma_voxels: tuple[float, float] = (0.5, 1.0)
    p_brightness: float = Field(default=0.15, ge=0, le=1)
    brightness: tuple[float, float] = (0.75, 1.25)
    p_contrast: float = Field(default=0.15, ge=0, le=1)
    contrast: tuple[float, float] = (0.75, 1.25)
    p_low_resolution: float = Field(default=0.25, ge=0, le=1)
    low_resolution: tuple[float, float] = (0.5, 1.0)
    p_gamma: float = Field(default=0.3, ge=0, le=1)
    p_gamma_inverted: float = Field(default=0.1, ge=0, le=1)
    gamma: tuple[float, float] = (0.7, 1.5)
    p_border_crop: float = Field(default=0.0, ge=0, le=1)
    border_crop: float = Field(default=0.05, ge=0, lt=0.5)
    p_crop: float = Field(default=0.0, ge=0, le=1)
    crop: float = Field(default=0.75, gt=0, le=1)
    p_offset: float = Field(default=0.0, ge=0, le=1)
    offset: float = Field(default=0.3, ge=0)
    mirror: bool = True
    mirror_axes: tuple[int, ...] | None = None

    @property
    def changes_images(self) -> bool:
        """Whether any transform may happen."""
        chances = [value for name, value in self if name.startswith("p_")]
        return self.mirror or any(chance > 0 for chance in chances)


class PredictionSettings(StrictModel):
    """Defaults of `msd predict` that a recipe may set.

    Attributes:
        step_size: distance of neighbouring windows as a share of the patch.
        mirror: average over mirrored windows (the plan's mirror axes).
        overlap: what is averaged where windows overlap: probabilities, or their logarithms (scaled to a sum of one).
        window_weights: of a window's voxels in that average: the centre counts more, or all count the same.
        fusion: how several members become one label map: by their mean probabilities, by the majority of their own
            label maps (between equal votes the mean probabilities decide; regions are voted on one by one), or by
            STAPLE, which weighs each member by how well it does (Warfield et al. 2004).
        postprocessing: what label maps go through on the native grid, step by step.
    """

    step_size: float = Field(default=0.5, gt=0, le=1)
    mirror: bool = False
    overlap: Literal["mean", "log-mean"] = "mean"
    window_weights: Literal["gaussian", "uniform"] = "gaussian"
    fusion: Literal["mean", "majority", "staple"] = "mean"
    postprocessing: Postprocessing = ()


class PretrainingChoice(StrictModel):
    """Which pretraining a method starts from by default.

    Attributes:
        recipe: None takes the one of the method's first objective, `pretrain-OBJECTIVE`.
        preset: None takes the method's own preset where that recipe has it, else `recommended`.
    """

    recipe: str | None = None
    preset: str | None = None


class Preset(StrictModel):
    """One preset of a recipe: overrides, section by section.

    Attributes:
        like: the preset it starts from, `PRESET` of the same recipe or `RECIPE.PRESET`; what stands here goes on top,
            setting by setting. None in a recipe that was loaded, where everything is filled in.
        pretraining: of a method that starts from a pretraining; that also brings the plan.
    """

    like: str | None = None
    plan: dict[str, Any] = Field(default_factory=dict)
    method: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    augmentation: dict[str, Any] = Field(default_factory=dict)
    prediction: dict[str, Any] = Field(default_factory=dict)
    pretraining: PretrainingChoice = Field(default_factory=PretrainingChoice)


class Recipe(StrictModel):
    """A shipped recipe file.

    Attributes:
        dataset: for which data it is meant; "" for any.
        expected: published or measured scores, as sentences with their source.
    """

    method: str
    title: str
    dataset: str = ""
    citation: str = ""
    expected: tuple[str, ...] = ()
    presets: dict[str, Preset]

    def preset(self, name: str) -> Preset:
        """Return a preset.

        Raises:
            UsageError: the recipe has none of that name.
        """
        if name not in self.presets:
            raise UsageError(
                f"recipe of '{self.method}' has no preset '{name}'",
                where="--preset",
                fix=did_you_mean(name, self.presets),
            )
        return self.presets[name]


class ResolvedRecipe(StrictModel):
    """All settings of a run, complete; written into the run folder before training starts.

    Attributes:
        method_settings: content of the method's own Settings.
        patch_size_voxels, batch_size: what training uses (batch over all ranks).
    """

    schema_version: int = 1
    method: str
    preset: str
    scale: Scale
    patch_size_voxels: tuple[int, ...]
    batch_size: int
    method_settings: dict[str, Any]
    training: TrainingSettings
    augmentation: AugmentationSettings
    prediction: PredictionSettings

    def digest(self) -> str:
        """Return the sha256 of the content."""
        return atomic.digest_of_content(self.model_dump(mode="json"))


def read_recipe(path: Path) -> Recipe:
    """Read a shipped recipe.

    Raises:
        UsageError: wrong or unknown keys.
    """
    return validate(Recipe, read_yaml(path), str(path))


def read_resolved_recipe(path: Path) -> ResolvedRecipe:
    """Read a run's `recipe.yaml`."""
    return validate(ResolvedRecipe, read_yaml(path), str(path))


def write_resolved_recipe(path: Path, recipe: ResolvedRecipe) -> None:
    """Write a run's `recipe.yaml` atomically."""
    atomic.write_yaml(
        path, recipe.model_dump(mode="json"), "# Settings of this run; read-only once training started.\n"
    )
