"""Normalisation of each channel: by nnU-Net's rule on the channel's name, or as a recipe says."""

from collections.abc import Sequence

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.fingerprint import Fingerprint, IntensityStatistics
from medsegdiff_cli.artifacts.plan import ChannelPlan, Normalisation
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.imaging.normalise import is_bounded, scheme_for_channel_name, takes_equalised
from medsegdiff_cli.planning.nnunet_rules import MASK_BELOW_RELATIVE_SIZE
from medsegdiff_cli.planning.overrides import PlanOverrides

_IN_WORDS = {
    "zscore": "z-score of each image",
    "zscore_dataset": "z-score with the dataset's mean and deviation inside the mask",
    "ct": "clipping to the foreground's 0.5 and 99.5 percentiles, then z-score of the dataset (CT)",
    "rescale_0_1": "rescaling each image to 0..1",
    "rescale_minus1_1": "rescaling each image to -1..1",
    "rgb_0_1": "division by 255",
    "quantile": "masked quantiles",
    "none": "none",
}


def plan_channels(fingerprint: Fingerprint, overrides: PlanOverrides) -> tuple[tuple[ChannelPlan, ...], list[str]]:
    """Return the channels' normalisation and the reasons.

    z-scores are taken inside the non-zero voxels when cropping to them removed more than a quarter (nnU-Net).

    Raises:
        UsageError: as many schemes as channels are needed; or a range to clip to that is empty; or equalised
            intensities for a scheme that cannot take them.
    """
    names = fingerprint.channel_names
    schemes = _schemes(names, overrides)
    _refuse_ranks_as_intensities(schemes, overrides)
    much_was_cropped = fingerprint.median_relative_size_after_cropping < MASK_BELOW_RELATIVE_SIZE
    channels = []
    for index, (name, scheme) in enumerate(zip(names, schemes, strict=True)):
        by_rule = scheme == "quantile" or scheme == "zscore_dataset" or (scheme == "zscore" and much_was_cropped)
        use_mask = by_rule if overrides.use_mask is None else overrides.use_mask
        statistics = {**_statistics(fingerprint, index, scheme), **_clipping(overrides), **_equalising(overrides)}
        whole = fingerprint.whole_intensity[index]
        content = {
            "name": name,
            "normalisation": scheme,
            "use_mask": use_mask,
            "statistics": statistics,
            "training_range": (whole.min, whole.max),
        }
        channels.append(validate(ChannelPlan, content, "plan: channels"))
    sentences = _explain(channels, fingerprint)
    if overrides.clip is not None:
        sentences.append("Intensities are clipped to {:g} ... {:g} first.".format(*overrides.clip))
    if overrides.equalise_gamma is not None:
        sentences.append(
            "Before that the histogram of each image is equalised to 0 ... 1 and taken to the power "
            f"{overrides.equalise_gamma:g}."
        )
    return tuple(channels), sentences


def plan_channel_copies(n_channels: int, grey_to_rgb: bool) -> tuple[int, list[str]]:
    """Return how many times a network is given the channels, and the reason where that is not once."""
    if not grey_to_rgb or n_channels != 1:
        return 1, []
    return 3, ["The one channel is given to the network three times, as a colour image."]


def _equalising(overrides: PlanOverrides) -> dict[str, float]:
    return {} if overrides.equalise_gamma is None else {"equalise_gamma": overrides.equalise_gamma}


def _refuse_ranks_as_intensities(schemes: Sequence[str], overrides: PlanOverrides) -> None:
    wrong = next((scheme for scheme in schemes if not takes_equalised(scheme)), None)
    if overrides.equalise_gamma is not None and wrong is not None:
        raise UsageError(
            f"normalisation '{wrong}' speaks of intensities, which equalising replaces by ranks",
            where="plan: equalise_gamma",
            fix="also give a normalisation: rescale_0_1, rescale_minus1_1, zscore or none",
        )


def _clipping(overrides: PlanOverrides) -> dict[str, float]:
    if overrides.clip is None:
        return {}
    low, high = overrides.clip
    if not low < high:
        raise UsageError(
            f"intensities cannot be clipped to {low:g} ... {high:g}",
            where="plan: clip",
            fix="give the smaller number first",
        )
    return {"clip_low": low, "clip_high": high}


def store_dtype(channels: Sequence[ChannelPlan]) -> str:
    """Return float16 where every channel's normalisation bounds the range, else float32."""
    return "float16" if all(is_bounded(channel.normalisation) for channel in channels) else "float32"


def _schemes(names: Sequence[str], overrides: PlanOverrides) -> list[str]:
    given: Normalisation | tuple[Normalisation, ...] | None = overrides.normalisation
    if given is None:
        return [scheme_for_channel_name(name) for name in names]
    schemes = [given] * len(names) if isinstance(given, str) else list(given)
    if len(schemes) != len(names):
        raise UsageError(
            f"{len(schemes)} normalisations for {len(names)} channels",
            where="plan: normalisation",
            fix="give one for all channels, or one a channel",
        )
    return [str(scheme) for scheme in schemes]


def _statistics(fingerprint: Fingerprint, channel: int, scheme: str) -> dict[str, float]:
    """Return the dataset's numbers that a scheme needs; without labels those of the mask or the whole image."""
    sources = {"ct": fingerprint.foreground_intensity, "zscore_dataset": fingerprint.mask_intensity}
    if scheme not in sources:
        return {}
    measured: IntensityStatistics = (sources[scheme] or fingerprint.mask_intensity or fingerprint.whole_intensity)[
        channel
    ]
    keys = ("mean", "std", "percentile_00_5", "percentile_99_5") if scheme == "ct" else ("mean", "std")
    return {key: getattr(measured, key) for key in keys}


def _explain(channels: Sequence[ChannelPlan], fingerprint: Fingerprint) -> list[str]:
    kinds: dict[tuple[str, bool], list[str]] = {}
    for channel in channels:
        kinds.setdefault((channel.normalisation, channel.use_mask), []).append(channel.name)
    sentences = [
        f"Normalisation of {', '.join(names)}: {_IN_WORDS[scheme]}{', inside the mask' if masked else ''}."
        for (scheme, masked), names in kinds.items()
    ]
    if any(channel.normalisation == "ct" for channel in channels) and not fingerprint.foreground_intensity:
        sentences.append("No labels: the CT window is taken from whole images, which is wider than a foreground's.")
    return sentences
