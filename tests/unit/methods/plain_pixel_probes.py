"""Small pixel probes and the textbook way to the same figures, for their tests."""

import torch
import torch.nn.functional as F
from torch import nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.methods.pixel_probes import PixelProbes, PixelProbesSettings

SMALL = {
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (),
    "hidden": (8, 4),
    "pixels": 60,
}
STEPS = (1, 10, 25)
SHAPE = (8, 6)
STAGE = PixelProbes.stages[0]
# How far outputs lie apart that must not be equal.
MARGIN = 1e-3


def probes(*, exclusive=True, **changes):
    """Return a small method whose every weight says something, the classifier's norms included."""
    torch.manual_seed(0)
    names = ("background", "organ", "nodule") if exclusive else ("whole", "nodule")
    task = Task(n_dims=2, in_channels=1, class_names=names, classes_are_exclusive=exclusive)
    method = PixelProbes(task, PixelProbesSettings(**{**SMALL, "timesteps": STEPS, **changes})).eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape) + (parameter.ndim == 1))
        for norm in method.classifier.norms:
            norm.running_mean.normal_(0, 0.5)
            norm.running_var.uniform_(0.5, 2)
    return method


def images(n=2):
    return torch.randn(n, 1, *SHAPE, generator=torch.Generator().manual_seed(3))


def labelled(method, *, valid=None, n=2):
    random = torch.Generator().manual_seed(4)
    if method.task.classes_are_exclusive:
        label = torch.randint(3, (n, *SHAPE), generator=random)
    else:
        label = torch.randint(2, (n, 2, *SHAPE), generator=random).to(torch.uint8)
    dtype = next(method.parameters()).dtype
    return Batch(image=images(n).to(dtype), label=label, valid=valid, case_ids=("x",) * n, positions=torch.arange(n))


def noise(*seeds):
    return NoiseSource([("noise", seed) for seed in seeds or (0, 1)])


def predicted(method, image, timesteps=None, source=None):
    with torch.inference_mode():
        return method.eval().predict(image, source or noise(*range(len(image))), Sampling(timesteps=timesteps))


def enlarged(method, image, source):
    """Return the plain way's features of each timestep, (batch, pixel, channel) of the whole image."""
    mode = {"linear": "bilinear", "nearest": "nearest"}[method.settings.upsampling]
    found = []
    for step in method.settings.timesteps:
        epsilon = source.randn(*image.shape[1:])
        level = method.schedule.alphas_cumprod[step].to(image.dtype)
        x_t = level.sqrt() * image + (1 - level).sqrt() * epsilon
        with torch.no_grad():
            blocks = method.network(x_t, torch.full((len(image),), step), method.taps)
        found.append(torch.cat([F.interpolate(block, size=SHAPE, mode=mode) for block in blocks], 1))
    return [features.flatten(2).movedim(1, -1) for features in found]


def heads_of(method):
    """Return each head as the textbook MLP: linear, ReLU, batch norm, twice, then linear."""
    model, heads = method.classifier, []
    for head in range(model.n_heads):
        layers = []
        for layer, norm in zip([model.first, *model.later], [*model.norms, None], strict=True):
            weight, bias = (part.detach().chunk(model.n_heads)[head] for part in (layer.weight[..., 0], layer.bias))
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight, "bias": bias})
            layers.append(linear)
            if norm is not None:
                own = nn.BatchNorm1d(len(bias))
                names = ("weight", "bias", "running_mean", "running_var")
                own.load_state_dict({n: getattr(norm, n).chunk(model.n_heads)[head] for n in names}, strict=False)
                layers += [nn.ReLU(), own]
        heads.append(nn.Sequential(*layers).to(model.first.weight.dtype).train(model.training))
    return heads


def drawn_pixels(method, source):
    """Return the flat indices (batch, pixel) that training draws: uniform numbers, axis by axis."""
    uniform = source.rand(method.settings.pixels, 2)
    rows, columns = (uniform[..., 0] * SHAPE[0]).long(), (uniform[..., 1] * SHAPE[1]).long()
    return rows * SHAPE[1] + columns


def inputs_of(method, features):
    """Return what the classifier reads: each timestep alone, or all of them joined."""
    return features if method.settings.shared else [torch.cat(features, -1)]
