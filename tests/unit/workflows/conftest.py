import pytest

from medsegdiff_cli.paths import Workspace
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options
from medsegdiff_cli.workflows.demo import DemoSettings, run_demo
from medsegdiff_cli.workflows.phantoms import CLASSES, PhantomSettings, write_phantoms
from medsegdiff_cli.workflows.run_request import TrainRequest
from medsegdiff_cli.workflows.run_setup import set_up_run
from medsegdiff_cli.workflows.train import train_run

TINY_NETWORK = {"model_channels": "8", "channel_mult": "[1, 2]"}


@pytest.fixture(scope="session")
def tiny_settings():
    return DemoSettings(
        labelled=2,
        unlabelled=2,
        test=2,
        size=16,
        pretraining={"steps": "2", **TINY_NETWORK},
        tedm={"steps": "2", "timesteps": "[1, 50]", "hidden": "[8]"},
        supervised={"steps": "2", **TINY_NETWORK},
        workers=0,
    )


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory, tiny_settings):
    """The whole chain in its smallest form: its report, and what it said."""
    said = []
    report = run_demo(tmp_path_factory.mktemp("demo") / "chain", seed=1, say=said.append, settings=tiny_settings)
    return report, said


@pytest.fixture(scope="session")
def tiny_volumes(tmp_path_factory):
    """A workspace with dataset 1, small volumes, and `supervised` trained on it for two steps."""
    root = tmp_path_factory.mktemp("volumes")
    workspace = Workspace(root / "workspace")
    source = write_phantoms(root / "source", PhantomSettings(shape=(8, 16, 16), seed=1), labelled=7)
    options = parse_options(
        images="images/*.nii.gz",
        labels="labels/*.nii.gz",
        label_map=[f"{value}:{name}" for value, name in CLASSES.items()],
        test_count=2,
    )
    convert_dataset("folder", source, workspace.raw / "Dataset001_Phantoms", options)
    overrides = {"steps": "2", "validate_every_steps": "0", "patch_size_voxels": "[8, 16, 16]"}
    request = TrainRequest(
        method="supervised", dataset="1", workspace=workspace, config="3d", scale="tiny", overrides=overrides
    )
    train_run(set_up_run(request))
    return workspace
