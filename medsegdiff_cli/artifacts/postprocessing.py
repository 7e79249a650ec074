"""Post-processing: the named steps that a predicted label map goes through, as recipes and runs store them.

A list of steps, applied in order. In YAML a step is its name alone, or its name and parameters:

```
postprocessing:
  - fill-holes
  - {step: opening, radius_mm: 2.0, classes: [liver]}
  - {step: remove-below, volume_mm3: 500}
  - largest-component
```

`imaging.postprocess` says what each step does to a mask, and how a change of one class leaves the others alone.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from medsegdiff_cli.artifacts.document import StrictModel, parse, read_yaml, validate
from medsegdiff_cli.errors import UsageError, did_you_mean

NONE = "none"
Connectivity = Literal["face", "full"]


class _Step(StrictModel):
    """What all steps share.

    Attributes:
        classes: names of the classes it is for, in turn; None takes all but the background.
    """

    classes: tuple[str, ...] | None = Field(default=None, min_length=1)

    @property
    def name(self) -> str:
        """The step's name."""
        return str(getattr(self, "step"))  # noqa: B009 (every step has it, each with its own literal type)


class FillHoles(_Step):
    """Fill background that the class encloses: what cannot reach the image's border over voxel faces."""

    step: Literal["fill-holes"] = "fill-holes"


class _WithRadius(_Step):
    """A step with a ball of one radius.

    Attributes:
        radius_mm: along the image's own spacing; needs an image that has one.
        radius_voxels: the same number of voxels along every axis.
    """

    radius_mm: float | None = Field(default=None, gt=0)
    radius_voxels: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_radius(self) -> "_WithRadius":
        if (self.radius_mm is None) == (self.radius_voxels is None):
            raise ValueError(f"{self.name} needs a radius: give radius_mm or radius_voxels")
        return self


class Erosion(_WithRadius):
    """Take away voxels within the radius of the outside."""

    step: Literal["erosion"] = "erosion"


class Dilation(_WithRadius):
    """Add background voxels within the radius."""

    step: Literal["dilation"] = "dilation"


class Opening(_WithRadius):
    """Erosion, then dilation: takes away what the ball does not fit into."""

    step: Literal["opening"] = "opening"


class LargestComponent(_Step):
    """Keep the largest connected component of each class.

    Attributes:
        connectivity: voxels belong together over faces, or also over edges and corners.
    """

    step: Literal["largest-component"] = "largest-component"
    connectivity: Connectivity = "full"


class KeepComponents(_Step):
    """Keep the n largest connected components of each class."""

    step: Literal["keep-components"] = "keep-components"
    n: int = Field(ge=1)
    connectivity: Connectivity = "full"


class RemoveBelow(_Step):
    """Remove connected components that are smaller than a volume.

    Attributes:
        volume_mm3: mm^2 for 2D images; needs an image with physical spacing.
        volume_voxels: number of voxels.
    """

    step: Literal["remove-below"] = "remove-below"
    volume_mm3: float | None = Field(default=None, gt=0)
    volume_voxels: int | None = Field(default=None, ge=1)
    connectivity: Connectivity = "full"

    @model_validator(mode="after")
    def _one_volume(self) -> "RemoveBelow":
        if (self.volume_mm3 is None) == (self.volume_voxels is None):
            raise ValueError(f"{self.name} needs a volume: give volume_mm3 or volume_voxels")
        return self


class MuscleUltrasound(_Step):
    """The chain for transverse muscle ultrasound: Marzola et al. 2021, as told by Fu et al. 2023, section 4.1.1.

    For 2D images only.

    Attributes:
        superficial: which of two large structures is kept: that nearer to the top of the image (the paper), or to its
            left side (the code that was published with it).
        disks: round ones of radius 3, 5 and 10 pixels (the paper), or the octagons within 5, 9 and 19 pixels that
            MATLAB's `strel('disk', R)` makes of them (the published code).
    """

    step: Literal["muscle-ultrasound"] = "muscle-ultrasound"
    superficial: Literal["top", "left"] = "top"
    disks: Literal["round", "matlab"] = "round"


Step = FillHoles | Erosion | Dilation | Opening | LargestComponent | KeepComponents | RemoveBelow | MuscleUltrasound
_STEPS: dict[str, type[_Step]] = {get_args(c.model_fields["step"].annotation)[0]: c for c in get_args(Step)}


def _with_names(content: Any) -> Any:
    """Turn bare names into steps; an unknown name is an error that tells the nearest one."""
    content = [content] if isinstance(content, str) else content
    if not isinstance(content, list | tuple):
        return content
    steps = [{"step": step} if isinstance(step, str) else step for step in content]
    for step in steps:
        name = step.get("step") if isinstance(step, dict) else getattr(step, "step", None)
        if not isinstance(name, str) or name not in _STEPS:
            raise ValueError(f"no step '{name}': {did_you_mean(str(name), _STEPS)}")
    return steps


Postprocessing = Annotated[
    tuple[Annotated[Step, Field(discriminator="step")], ...],
    BeforeValidator(_with_names),
]
_PLAIN: TypeAdapter[tuple[Step, ...]] = TypeAdapter(Postprocessing)


class _Document(StrictModel):
    """A list of steps on its own."""

    postprocessing: Postprocessing = ()


def as_plain_data(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    """Return steps as JSON-serialisable data, all parameters spelled out; equal lists mean equal post-processing."""
    content: list[dict[str, Any]] = _PLAIN.dump_python(steps, mode="json")
    return content


def parse_postprocessing(text: str, where: str = "--postprocess") -> tuple[Step, ...]:
    """Return the steps that a command line asks for.

    Args:
        text: `none`; a YAML file with a list of steps (or with the key `postprocessing`); or the list itself, with or
            without brackets: `fill-holes,largest-component` or `[{step: opening, radius_mm: 2}, largest-component]`.

    Raises:
        UsageError: no such file, an unknown step, or wrong parameters.
    """
    if text.strip() == NONE:
        return ()
    if Path(text).suffix in (".yaml", ".yml"):
        content, where = read_yaml(Path(text).expanduser()), text
        if isinstance(content, dict) and [*content] == ["postprocessing"]:
            content = content["postprocessing"]
    else:
        listed = text if text.lstrip().startswith("[") else f"[{text}]"
        content = parse(listed.encode(), "YAML", where, UsageError)
    if not isinstance(content, list) or not content:
        fix = f"write {NONE}, a YAML file, or names: {','.join(_STEPS)}"
        raise UsageError(f"'{text}' is no list of steps", where=where, fix=fix)
    return validate(_Document, {"postprocessing": content}, where).postprocessing
