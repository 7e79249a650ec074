"""Cohorts of the experiments: which phantoms a seed has."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from medsegdiff_cli.artifacts.document import StrictModel


class _OnScanners(StrictModel):
    """What chest phantoms have in common; the mappings go from a scanner to a number of cases.

    Attributes:
        shape: pixels (y, x).
        test: the same persons on every scanner.
    """

    shape: tuple[int, int]
    test: dict[str, int]

    @property
    def test_cases(self) -> int:
        """Test persons of a seed."""
        return max(self.test.values())

    @property
    def same_tests(self) -> bool:
        """Whether all seeds have the same test images: each has its own."""
        return False


class Chests(_OnScanners):
    """Chest phantoms: labels on some scanners, unlabelled images of others.

    Attributes:
        labelled: the pool that label budgets are drawn from.
    """

    labelled: dict[str, int]
    unlabelled: dict[str, int]

    @property
    def domains(self) -> tuple[str, ...]:
        """Kinds of test images: scanners."""
        return tuple(self.test)

    @property
    def pool(self) -> int:
        """Labelled cases."""
        return sum(self.labelled.values())

    @property
    def in_words(self) -> str:
        """What a seed has."""
        return (
            f"phantoms of {self.shape[0]} x {self.shape[1]} pixels a seed: labelled {_counts(self.labelled)}, "
            f"unlabelled {_counts(self.unlabelled)}, test {_counts(self.test)}"
        )


class Blobs(StrictModel):
    """One target among distractors; each seed has training images of its own, the test images are the same for all.

    Attributes:
        shape: pixels (y, x).
        noise: deviation of the white noise; the target's contrast is 1.
        labelled: training images of a seed.
        test: test images, drawn from `test_seed`.
    """

    kind: Literal["blobs"]
    shape: tuple[int, int]
    noise: float = Field(ge=0)
    labelled: int = Field(ge=1)
    test: int = Field(ge=1)
    test_seed: int = Field(ge=0)

    @property
    def domains(self) -> tuple[str, ...]:
        """Kinds of test images."""
        return ("blobs",)

    @property
    def pool(self) -> int:
        """Labelled cases."""
        return self.labelled

    @property
    def test_cases(self) -> int:
        """Test images."""
        return self.test

    @property
    def same_tests(self) -> bool:
        """Whether all seeds have the same test images."""
        return True

    @property
    def in_words(self) -> str:
        """What a seed has."""
        return (
            f"blob phantoms of {self.shape[0]} x {self.shape[1]} pixels, noise {self.noise:g}: labelled "
            f"{self.labelled} a seed, test {self.test} for all seeds (phantom seed {self.test_seed})"
        )


class Transfers(_OnScanners):
    """Chest phantoms of a scanner to pretrain on, and of others to fine-tune on and test, each a dataset of its own.

    The source shares no person with a target, nor a test with either.

    Attributes:
        source: labelled cases of the pretraining.
        targets: labelled cases of each fine-tuning; the same persons on every scanner.
    """

    kind: Literal["transfers"]
    source: dict[str, int] = Field(min_length=1)
    targets: dict[str, int] = Field(min_length=1)

    @model_validator(mode="after")
    def _tests_its_targets(self) -> "Transfers":
        if set(self.test) != set(self.targets):
            raise ValueError(f"targets {sorted(self.targets)} and test {sorted(self.test)} are not the same scanners")
        return self

    @property
    def domains(self) -> tuple[str, ...]:
        """Kinds of test images: the scanners that models are fine-tuned for."""
        return tuple(self.targets)

    @property
    def pool(self) -> int:
        """Labelled cases that a fine-tuning may draw from."""
        return min(self.targets.values())

    @property
    def in_words(self) -> str:
        """What a seed has."""
        return (
            f"phantoms of {self.shape[0]} x {self.shape[1]} pixels a seed: pretraining on {_counts(self.source)}, "
            f"fine-tuning on {_counts(self.targets)}, each a model of its own, test {_counts(self.test)}"
        )


def _kind_of(content: Any) -> str:
    kind = content.get("kind") if isinstance(content, dict) else getattr(content, "kind", None)
    return "chests" if kind is None else str(kind)


Cohort = Annotated[
    Annotated[Chests, Tag("chests")] | Annotated[Blobs, Tag("blobs")] | Annotated[Transfers, Tag("transfers")],
    Discriminator(_kind_of),
]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} on {scanner}" for scanner, n in counts.items())
