"""Forecast of memory against the measured peak: trainings and predictions on the CPU, each in a process of its own.

A training makes a few steps of the real loop, checkpoint and average included, on random batches; a prediction segments
random images with random weights. Peak is resident memory above what the process had before the work, but for the
weights; forecast is what `--dry-run` says. Prints one line a case, and exits with 1 when a peak above 500 MB is more
than 20 % off.

    python tests/benchmarks/memory_forecast.py [CASE...]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS, TOLERANCE, FROM_MB = 2, 0.2, 500
SMALL = {"model_channels": 16, "channel_mult": [1, 2, 4, 8], "num_res_blocks": 1, "attention_levels": []}
WIDE = {**SMALL, "model_channels": 32, "channel_mult": [1, 2, 2, 4]}
TRAININGS = {
    "supervised 2D": ("supervised", SMALL, (256, 256), 4),
    "supervised 3D": ("supervised", SMALL, (48, 48, 48), 2),
    "supervised 2D, attention": ("supervised", {**WIDE, "attention_levels": [2, 3]}, (128, 128), 4),
    "supervised 2D, checkpointed": ("supervised", {**SMALL, "gradient_checkpointing": True}, (256, 256), 8),
    "diffusion pretraining 2D": ("pretrain-diffusion", {**SMALL, "network": "tedm"}, (256, 256), 4),
    "diffusion pretraining 3D": ("pretrain-diffusion", SMALL, (48, 48, 48), 2),
    "contrast of patches 2D": ("pretrain-global-cl", {**SMALL, "network": "tedm"}, (256, 256), 4),
    "tedm classifier 2D": ("tedm", {**WIDE, "network": "tedm"}, (256, 256), 2),
    "tedm classifier 3D": ("tedm", {**SMALL, "network": "tedm"}, (48, 48, 48), 1),
    "ledm classifier 2D": ("ledm", {**WIDE, "network": "adm"}, (256, 256), 2),
}
PREDICTIONS = {
    "prediction 2D": ("supervised", SMALL, (256, 256), (32, 256, 256)),
    "prediction 3D": ("supervised", SMALL, (64, 64, 64), (128, 128, 128)),
    "prediction tedm 2D": ("tedm", {**WIDE, "network": "tedm"}, (256, 256), (8, 256, 256)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    worst = 0.0
    print(f"{'case':<30} {'forecast':>9} {'peak':>9} {'ratio':>6}")
    for name in options.cases or [*TRAININGS, *PREDICTIONS]:
        command = [sys.executable, __file__, "--measure", name]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        ratio = found["forecast_mb"] / found["peak_mb"]
        counts = found["peak_mb"] > FROM_MB
        worst = max(worst, abs(ratio - 1) if counts else 0)
        print(f"{name:<30} {found['forecast_mb']:>6.0f} MB {found['peak_mb']:>6.0f} MB {ratio:>6.2f}", flush=True)
    print(f"largest error above {FROM_MB} MB: {worst:.0%}")
    return int(worst > TOLERANCE)


def measure(name: str) -> dict[str, float]:
    """Return forecast and peak of a case in MB."""
    with tempfile.TemporaryDirectory() as folder:
        if name in TRAININGS:
            return measure_training_of(*TRAININGS[name], Path(folder))
        return measure_prediction_of(*PREDICTIONS[name], Path(folder))


def measure_training_of(method_name, settings, patch, batch, folder):
    import torch

    from medsegdiff_cli.artifacts.document import validate
    from medsegdiff_cli.artifacts.recipe import TrainingSettings
    from medsegdiff_cli.artifacts.task import Task
    from medsegdiff_cli.methods.registry import find_trainable
    from medsegdiff_cli.training.loop import train_stage
    from medsegdiff_cli.workflows.memory_forecast import example_batch, measure_training

    task = Task(n_dims=len(patch), in_channels=1, class_names=("background", "organ", "nodule"))
    cpu = torch.device("cpu")
    forecast = measure_training(method_name, task, settings, patch, batch, cpu)
    method_class = find_trainable(method_name).load()
    method = method_class(task, validate(method_class.Settings, settings, "settings"))
    stage = method.stages[-1]

    def batches(done):
        for _ in range(done, STEPS):
            example = example_batch(task, patch, batch, stage)
            example.image.normal_()
            yield example

    before = start_of_peak() - weights_mb(method)
    training = TrainingSettings(steps=STEPS, warmup_steps=0)
    train_stage(method, stage, training, folder=folder, make_batches=batches, seed=0, device=cpu)
    return {"forecast_mb": forecast / 2**20, "peak_mb": peak() - before}


def measure_prediction_of(method_name, settings, patch, shape, folder):
    import numpy as np
    import SimpleITK

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from toy_models import PLAN, RECIPE, write_run_folder

    from medsegdiff_cli.imaging.reading import read_geometry
    from medsegdiff_cli.workflows.forecast import arrays_bytes, network_bytes
    from medsegdiff_cli.workflows.predict import PredictRequest, prepare_prediction, run_prediction

    config = "2d" if len(patch) == 2 else "3d"
    of_plan = {**PLAN["configurations"]["3d"], "median_shape_voxels": shape, "patch_size_voxels": patch}
    if config == "2d":
        of_plan["spacing_mm"] = [1.0, 1.0]
    plan = {**PLAN, "default_config": config, "configurations": {config: of_plan}}
    recipe = {**RECIPE, "method": method_name, "method_settings": settings, "patch_size_voxels": patch}
    run = write_run_folder(folder / "results", plan=plan, recipe=recipe) / "fold_0"
    (folder / "images").mkdir()
    for number in range(2):
        image = np.random.default_rng(number).normal(size=shape).astype(np.float32)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(folder / "images" / f"{number}.nii.gz"))
    request = PredictRequest(models=(run,), source=folder / "images", output=folder / "out", workers=1, step_size=1.0)
    prepared = prepare_prediction(request)
    geometry = read_geometry(prepared.cases[0].images[0])
    forecast = network_bytes(prepared) + arrays_bytes(prepared.job, geometry)
    (model,) = prepared.job.models
    before = start_of_peak() - weights_mb(model.method)
    run_prediction(prepared)
    return {"forecast_mb": forecast / 2**20, "peak_mb": peak() - before}


def weights_mb(method) -> float:
    """Return what a method's weights take; they are there already when the peak is measured."""
    return sum(parameter.numel() * parameter.element_size() for parameter in method.parameters()) / 2**20


def start_of_peak() -> float:
    """Forget the peak so far, and return resident memory in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak() -> float:
    """Return the most resident memory in MB since `start_of_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
