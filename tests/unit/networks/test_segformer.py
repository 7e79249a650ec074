"""SegFormer: the names and sizes of `transformers`, written down by hand; its parts against plain sums."""

import pytest
import torch
import torch.nn.functional as F

from medsegdiff_cli.networks.segformer import Block, ReducedAttention, SegFormer

# Of `SegformerForSemanticSegmentation` with B3's depths, hidden sizes and 150 labels.
PUBLISHED = {
    "segformer.encoder.patch_embeddings.0.proj.weight": (64, 3, 7, 7),
    "segformer.encoder.patch_embeddings.3.proj.weight": (512, 320, 3, 3),
    "segformer.encoder.patch_embeddings.1.layer_norm.weight": (128,),
    "segformer.encoder.block.0.0.layer_norm_1.weight": (64,),
    "segformer.encoder.block.0.2.attention.self.query.weight": (64, 64),
    "segformer.encoder.block.1.3.attention.self.sr.weight": (128, 128, 4, 4),
    "segformer.encoder.block.2.17.attention.self.layer_norm.bias": (320,),
    "segformer.encoder.block.3.2.attention.output.dense.weight": (512, 512),
    "segformer.encoder.block.2.0.mlp.dense1.weight": (1280, 320),
    "segformer.encoder.block.2.0.mlp.dwconv.dwconv.weight": (1280, 1, 3, 3),
    "segformer.encoder.layer_norm.3.bias": (512,),
    "decode_head.linear_c.3.proj.weight": (768, 512),
    "decode_head.linear_fuse.weight": (768, 3072, 1, 1),
    "decode_head.batch_norm.running_var": (768,),
    "decode_head.classifier.weight": (150, 768, 1, 1),
}


def test_names_shapes_and_number_of_parameters_are_those_of_b3():
    with torch.device("meta"):
        network = SegFormer(3, 150)
    state = network.state_dict()
    assert {name: tuple(state[name].shape) for name in PUBLISHED} == PUBLISHED
    assert "segformer.encoder.block.3.0.attention.self.sr.weight" not in state, "the last stage reduces nothing"
    total, before = 0, 3
    for c, patch, reduction, blocks in zip((64, 128, 320, 512), (7, 3, 3, 3), (8, 4, 2, 1), (3, 4, 18, 3), strict=True):
        attention = 4 * (c * c + c) + ((c * c * reduction**2 + c + 2 * c) if reduction > 1 else 0)
        mlp = 2 * 4 * c * c + 4 * c + c + 4 * c * (9 + 1)
        total += before * c * patch**2 + c + 2 * c + blocks * (attention + mlp + 4 * c) + 2 * c
        total += c * 768 + 768
        before = c
    total += 4 * 768 * 768 + 2 * 768 + 768 * 150 + 150
    # The paper's Table 1: 47.3 million with 150 classes.
    assert sum(p.numel() for p in network.parameters()) == total == 47_337_814


def test_features_are_a_quarter_to_a_thirty_second_and_logits_the_images_size():
    network = SegFormer(1, 3, width=4, blocks=(1, 1, 1, 1), head_width=16).eval()
    features = network.segformer["encoder"](torch.zeros(2, 1, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(4, 16, 24), (8, 8, 12), (20, 4, 6), (32, 2, 3)]
    for size in ((64, 96), (50, 70)):
        assert network(torch.randn(1, 1, *size)).shape == (1, 3, *size)
    assert network.divisor == (32, 32)


@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_is_the_softmax_of_products(reduction):
    torch.manual_seed(0)
    attention = ReducedAttention(8, 2, reduction).double()
    x = torch.randn(3, 24, 8, dtype=torch.float64)
    seen = x
    if reduction > 1:
        picture = x.reshape(3, 4, 6, 8).permute(0, 3, 1, 2)
        smaller = F.conv2d(picture, attention.sr.weight, attention.sr.bias, stride=2)
        seen = F.layer_norm(
            smaller.permute(0, 2, 3, 1).reshape(3, 6, 8), (8,), attention.layer_norm.weight, attention.layer_norm.bias
        )
    expected = []
    for head in (slice(0, 4), slice(4, 8)):
        q, k, v = attention.query(x)[..., head], attention.key(seen)[..., head], attention.value(seen)[..., head]
        scores = torch.einsum("bic,bjc->bij", q, k) / 2
        expected.append(torch.einsum("bij,bjc->bic", scores.exp() / scores.exp().sum(-1, keepdim=True), v))
    torch.testing.assert_close(attention(x, (4, 6)), torch.cat(expected, -1))


def test_a_block_that_is_dropped_leaves_items_as_they_are_and_the_others_on_average():
    torch.manual_seed(0)
    block = Block(8, 1, 1, drop_path=0.5).train()
    x = torch.randn(1, 12, 8).expand(400, -1, -1)
    with torch.no_grad():
        attended = block.attention["output"]["dense"](block.attention["self"](block.layer_norm_1(x), (3, 4)))
        kept = block._kept(attended)
    untouched = (kept == 0).flatten(1).all(1)
    # 200 +- 40 (4 sigma of a binomial); what is kept counts double.
    assert 160 <= int(untouched.sum()) <= 240
    torch.testing.assert_close(kept[~untouched], 2 * attended[~untouched])
    assert torch.equal(block.eval()._kept(attended), attended)
