"""The one translation of a plan into what the imaging toolbox understands; training and prediction both use it."""

from medsegdiff_cli.artifacts.plan import Plan
from medsegdiff_cli.imaging.transform import ChannelScheme, TransformSettings


def transform_settings(plan: Plan, config: str | None) -> TransformSettings:
    """Return how cases come onto the grid of a configuration.

    Args:
        config: name of the configuration; None takes the plan's default.

    Raises:
        UsageError: the plan has no such configuration.
    """
    _, configuration = plan.configuration(config)
    return TransformSettings(
        transpose=plan.transpose,
        crop=plan.crop,
        channels=tuple(
            ChannelScheme(
                name=channel.name,
                scheme=channel.normalisation,
                use_mask=channel.use_mask,
                statistics=channel.statistics,
            )
            for channel in plan.channels
        ),
        geometry=plan.geometry,
        spacing_mm=configuration.spacing_mm,
        size_voxels=configuration.size_voxels,
        keep_aspect=plan.keep_aspect,
        interpolation=plan.interpolation,
        centre_crop=plan.centre_crop,
        channel_copies=plan.channel_copies,
        store_dtype=configuration.store_dtype,
    )
