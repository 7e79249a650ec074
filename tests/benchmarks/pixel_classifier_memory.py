"""Peak memory of predicting one image with a pixel classifier: the plain way against the fast way.

The plain way enlarges every block to the image's size, concatenates, and runs the MLPs on all pixels, as the published
code of LEDM (all steps as channels) and of TEDM (all steps as a batch) does. Each way runs in a child process of its
own; a third child only loads the model and is subtracted. Prints peak resident memory above the loaded model, the
ratio (goal: 3 or more) and the seconds of each way, backbone included.

    python tests/benchmarks/pixel_classifier_memory.py [--case ledm|tedm] [--size 256] [--model-channels 128]

ledm: ADM U-Net, blocks 5, 6, 7, 8, 12, 3 steps joined, 10 MLPs, 8 classes.
tedm: TEDM U-Net, all four taps, 8 steps that share one MLP, 2 classes.
"""

import argparse
import json
import subprocess
import sys
import time

STEPS = {"ledm": (50, 150, 250), "tedm": (1, 10, 25, 50, 200, 400, 600, 800)}
TAPS = {"ledm": (5, 6, 7, 8, 12), "tedm": (0, 1, 2, 3)}
SIZE = {"ledm": 256, "tedm": 128}
WIDTH = {"ledm": 128, "tedm": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(STEPS), default="ledm")
    parser.add_argument("--size", type=int)
    parser.add_argument("--model-channels", type=int)
    parser.add_argument("--way", choices=("load", "plain", "fast"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.size or SIZE[options.case]
    width = options.model_channels or WIDTH[options.case]
    if options.way:
        print(json.dumps(measure(options.case, size, width, options.way)))
        return
    # The parent must stay small: a child's peak starts at what its parent had.
    found = {}
    for way in ("load", "plain", "fast"):
        command = [sys.executable, __file__, "--case", options.case, "--size", str(size)]
        command += ["--model-channels", str(width), "--way", way]
        found[way] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    above = {way: found[way]["peak_mb"] - found["load"]["peak_mb"] for way in ("plain", "fast")}
    print(f"{options.case}, {size} x {size}, {width} channels; model loaded: {found['load']['peak_mb']:.0f} MB")
    for way, peak in above.items():
        seconds, digest = found[way]["seconds"], found[way]["mean_foreground"]
        print(f"{way:>5}: +{peak:.0f} MB, {seconds:.1f} s, mean foreground probability {digest:.7f}")
    print(f"ratio: {above['plain'] / above['fast']:.2f}")


def measure(case: str, size: int, width: int, way: str) -> dict[str, float]:
    """Return peak resident memory in MB and the seconds of one way, in this process."""
    import resource

    import torch

    from medsegdiff_cli.networks.adm_unet import ADMSettings, ADMUNet
    from medsegdiff_cli.networks.pixel_classifier import PixelClassifier
    from medsegdiff_cli.networks.tedm_unet import TEDMSettings, TEDMUNet

    torch.manual_seed(0)
    shape = {"n_dims": 2, "in_channels": 1, "out_channels": 1, "model_channels": width}
    is_ledm = case == "ledm"
    network = (ADMUNet(ADMSettings(**shape)) if is_ledm else TEDMUNet(TEDMSettings(**shape))).eval()
    channels = network.tap_channels(TAPS[case]) * (len(STEPS[case]) if is_ledm else 1)
    settings = {"n_classes": 8, "n_heads": 10} if is_ledm else {"n_classes": 2}
    classifier = PixelClassifier(channels, **settings).eval()
    image, total, start = torch.randn(1, 1, size, size), torch.zeros(()), time.perf_counter()
    if way != "load":
        with torch.inference_mode():
            if way == "plain":
                logits = classify_plainly(classifier, plain_features(network, image, case), is_ledm)
                total = logits.softmax(2)[:, :, 1:].mean()
            for steps in {"plain": [], "fast": [STEPS[case]] if is_ledm else [(step,) for step in STEPS[case]]}[way]:
                features = [f for step in steps for f in network(image, torch.tensor([step]), taps=TAPS[case])]
                logits = classifier.forward_dense(features, (size, size))
                total = total + logits.softmax(2)[:, :, 1:].mean() * len(steps) / len(STEPS[case])
    return {
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seconds": time.perf_counter() - start,
        "mean_foreground": total.item(),
    }


def plain_features(network, image, case):
    """Return the enlarged blocks of each step, (1, channel, *image)."""
    import torch
    import torch.nn.functional as F

    size = image.shape[2:]
    return [
        torch.cat(
            [
                F.interpolate(f, size=size, mode="bilinear")
                for f in network(image, torch.tensor([step]), taps=TAPS[case])
            ],
            1,
        )
        for step in STEPS[case]
    ]


def classify_plainly(classifier, features, joined):
    """Return logits (batch, head, class, y, x), one head after the other on a matrix of all pixels."""
    import torch
    import torch.nn.functional as F

    size = features[0].shape[2:]
    pixels = torch.cat(features, 1 if joined else 0).flatten(2)
    heads = classifier.n_heads
    logits = []
    for i in range(heads):
        h = pixels
        for norm, layer in zip([None, *classifier.norms], [classifier.first, *classifier.later], strict=True):
            if norm is not None:
                n = len(norm.weight) // heads
                part = slice(i * n, (i + 1) * n)
                own = [t[part] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)]
                h = F.batch_norm(h.relu(), *own)
            h = layer.weight[..., 0].chunk(heads)[i] @ h + layer.bias.chunk(heads)[i][:, None]
        logits.append(h.unflatten(2, size))
    return torch.stack(logits, 1)


if __name__ == "__main__":
    main()
