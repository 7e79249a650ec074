"""The pixel classifier equals the plain way: enlarge every block, concatenate, run an MLP on each pixel."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsegdiff_cli.networks import pixel_classifier
from medsegdiff_cli.networks.pixel_classifier import PixelClassifier, gather_pixels

# Grids that don't divide the image, one of full size, two alike, one that is flat along an axis.
GRIDS = {2: [(3, 5), (7, 4), (13, 11), (7, 4), (1, 2)], 3: [(2, 3, 2), (6, 4, 5), (3, 1, 4), (2, 3, 2)]}
SHAPES = {2: (13, 11), 3: (6, 4, 5)}
CHANNELS = (6, 5, 4, 3, 2)
WIDTHS = ([16, 8], [])

every_case = pytest.mark.parametrize(
    ("n_dims", "upsampling", "n_heads", "hidden"),
    [
        (d, mode, heads, hidden)
        for d in (2, 3)
        for mode in ("linear", "nearest")
        for heads in (1, 3)
        for hidden in WIDTHS
    ],
)


def features_of(n_dims, batch=2, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    grids = GRIDS[n_dims]
    return [torch.randn(batch, c, *grid, generator=random).to(dtype) for c, grid in zip(CHANNELS, grids, strict=False)]


def classifier(n_dims, **settings):
    """Return a classifier in eval mode whose norms do something."""
    torch.manual_seed(1)
    model = PixelClassifier(CHANNELS[: len(GRIDS[n_dims])], 3, **{"hidden": (16, 8), **settings}).eval()
    for norm in model.norms:
        for tensor in (norm.running_mean, norm.bias.data):
            tensor.normal_(0, 0.5)
        for tensor in (norm.running_var, norm.weight.data):
            tensor.uniform_(0.5, 2)
    return model


def enlarged(features, shape, upsampling):
    mode = "nearest" if upsampling == "nearest" else {2: "bilinear", 3: "trilinear"}[len(shape)]
    return torch.cat([F.interpolate(f, size=shape, mode=mode) for f in features], 1)


def separate_heads(model):
    """Return each head as the textbook MLP: linear, ReLU, batch norm, twice, then linear."""
    heads = []
    for i in range(model.n_heads):
        layers = []
        for layer, norm in zip([model.first, *model.later], [*model.norms, None], strict=True):
            weight, bias = layer.weight[..., 0].chunk(model.n_heads)[i], layer.bias.chunk(model.n_heads)[i]
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight, "bias": bias})
            layers.append(linear)
            if norm is not None:
                own = nn.BatchNorm1d(len(bias))
                names = ("weight", "bias", "running_mean", "running_var")
                own.load_state_dict({n: getattr(norm, n).chunk(model.n_heads)[i] for n in names}, strict=False)
                layers += [nn.ReLU(), own]
        heads.append(nn.Sequential(*layers).train(model.training))
    return heads


def plain(model, features, shape):
    """Return logits (batch, head, class, *shape) of the plain way."""
    pixels = enlarged(features, shape, model.upsampling).movedim(1, -1)
    with torch.no_grad():
        logits = [head(pixels.flatten(0, -2)).unflatten(0, pixels.shape[:-1]) for head in separate_heads(model)]
    return torch.stack([head.movedim(-1, 1) for head in logits], 1)


@every_case
def test_dense_probabilities_are_those_of_the_plain_way(n_dims, upsampling, n_heads, hidden, monkeypatch):
    monkeypatch.setattr(pixel_classifier, "TILE_NUMBERS", 4 * 16 * SHAPES[n_dims][-1])  # tiles of a few rows
    model = classifier(n_dims, upsampling=upsampling, n_heads=n_heads, hidden=hidden)
    features = features_of(n_dims)
    expected = plain(model, features, SHAPES[n_dims])
    logits = model.forward_dense(features, SHAPES[n_dims])
    assert logits.shape == (2, n_heads, 3, *SHAPES[n_dims])
    assert (logits.softmax(2) - expected.softmax(2)).abs().max() <= 1e-5
    assert torch.equal(logits.argmax(2), expected.argmax(2))
    assert expected.std() > 0.05, "the test's own weights must say something"


@every_case
def test_sampled_pixels_have_the_logits_of_the_plain_way(n_dims, upsampling, n_heads, hidden):
    model = classifier(n_dims, upsampling=upsampling, n_heads=n_heads, hidden=hidden)
    features, shape = features_of(n_dims), SHAPES[n_dims]
    everywhere = torch.cartesian_prod(*[torch.arange(n) for n in shape])
    positions = torch.stack([everywhere, everywhere.flip(0)])
    expected = plain(model, features, shape).flatten(3)
    expected = torch.stack([expected[0], expected[1].flip(-1)])
    assert (model.logits_at(features, positions, shape) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("upsampling", ["linear", "nearest"])
def test_gathered_features_are_interpolated_features(n_dims, upsampling):
    shape = (9, 12, 10)[:n_dims]
    positions = torch.cartesian_prod(*[torch.arange(n) for n in shape])[None].expand(2, -1, -1)
    # The last grid is finer than the image.
    finer = torch.randn(2, 3, *(17, 12, 23)[:n_dims], generator=torch.Generator().manual_seed(2))
    for feature in [*features_of(n_dims), finer]:
        exact = feature.double()
        expected = enlarged([exact], shape, upsampling).flatten(2)
        torch.testing.assert_close(gather_pixels(exact, positions, shape, upsampling), expected, rtol=0, atol=1e-12)


def test_training_norms_all_pixels_of_the_batch_together_and_heads_apart():
    model = classifier(2, n_heads=2).train()
    features, shape = features_of(2), SHAPES[2]
    everywhere = torch.cartesian_prod(*[torch.arange(n) for n in shape])
    expected = plain(model, features, shape).flatten(3)  # of separate MLPs in training mode, all pixels in one batch
    logits = model.logits_at(features, everywhere[None].expand(2, -1, -1), shape)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_plain_way():
    model, shape = classifier(2).train(), SHAPES[2]
    everywhere = torch.cartesian_prod(*[torch.arange(n) for n in shape])
    model.logits_at(features_of(2), everywhere[None].expand(2, -1, -1), shape).square().mean().backward()
    (head,) = separate_heads(model)
    pixels = enlarged(features_of(2), shape, "linear").movedim(1, -1).flatten(0, -2)
    head(pixels).square().mean().backward()
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    for mine, theirs in zip([model.first, *model.later], linear, strict=True):
        torch.testing.assert_close(mine.weight.grad[..., 0], theirs.weight.grad, rtol=1e-3, atol=1e-6)


def test_tiles_do_not_change_the_result(monkeypatch):
    model, features = classifier(2), features_of(2)
    whole = model.forward_dense(features, SHAPES[2])
    monkeypatch.setattr(pixel_classifier, "TILE_NUMBERS", 1)  # a row each
    torch.testing.assert_close(model.forward_dense(features, SHAPES[2]), whole, rtol=0, atol=1e-6)


def test_no_full_size_tensor_exists_but_the_result():
    model = PixelClassifier((64, 64), 2, hidden=(32, 8)).eval()
    features = [torch.randn(1, 64, 32, 32), torch.randn(1, 64, 256, 256)]
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage() is not None:
                known = {f.untyped_storage().data_ptr() for f in features}
                if result.untyped_storage().data_ptr() not in known:
                    largest = max(largest, result.untyped_storage().nbytes() // 4)
            return result

    with Largest():
        model.forward_dense(features, (256, 256))
    assert largest <= pixel_classifier.TILE_NUMBERS < 32 * 256 * 256


def test_half_precision_features_are_computed_in_the_classifiers_precision():
    model = classifier(2)
    halves = features_of(2, dtype=torch.float16)
    exact = [f.float() for f in halves]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.forward_dense(halves, SHAPES[2])
    torch.testing.assert_close(logits, model.forward_dense(exact, SHAPES[2]), rtol=0, atol=1e-6)


def test_initial_weights_can_be_those_of_ledm():
    model = PixelClassifier((500, 460), 3, n_heads=10, init_std=0.02)
    assert model.first.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.first.bias.any()
    assert [tuple(layer.weight.shape[:2]) for layer in (model.first, *model.later)] == [
        (1280, 960),
        (320, 128),
        (30, 32),
    ]


def test_the_logistic_variant_is_one_linear_layer():
    model = PixelClassifier((4, 2), 3, hidden=())
    assert sum(p.numel() for p in model.parameters()) == 3 * 6 + 3


def test_misuse_is_refused():
    model, features = classifier(2), features_of(2)
    with pytest.raises(ValueError, match="needs eval mode"):
        model.train().forward_dense(features, SHAPES[2])
    with pytest.raises(ValueError, match=r"blocks have \(6, 5\) features"):
        model.logits_at(features[:2], torch.zeros(2, 1, 2, dtype=torch.int64), SHAPES[2])
    with pytest.raises(ValueError, match=r"must be \(batch, channel, \*grid\) with 3 axes"):
        model.logits_at(features, torch.zeros(2, 1, 3, dtype=torch.int64), (4, 4, 4))
    with pytest.raises(ValueError, match=r"positions \(1, 1, 2\): need \(2, n, 2\)"):
        model.logits_at(features, torch.zeros(1, 1, 2, dtype=torch.int64), SHAPES[2])
    with pytest.raises(ValueError, match="all 1 or more"):
        PixelClassifier((3,), 0)
