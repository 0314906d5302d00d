"""ScaleDreamer's generators in its numbers."""

import pytest
import torch
from turboprop.amortized.conv_generator import ConvGenerator
from turboprop.amortized.triplane_transformer import Block, TriplaneTransformer


@pytest.mark.parametrize("multiplier, millions, biases", [(1, 88.7, 44.3), (2, 144.8, 86.2)])
def test_the_3dconv_nets_size(multiplier, millions, biases):
    """Of its widths of 4 to 128 points along an axis; the finer three are wider in the run on 100,000 prompts.

    Half of these numbers are learned by voxel, one volume for each resolution from 8 up to 64.
    """
    widths = {4: 512, 8: 512, 16: 512, 32: 256 * multiplier, 64: 128 * multiplier, 128: 64 * multiplier}
    with torch.device("meta"):
        network = ConvGenerator(1024, 64, 256, 32, widths, constant_bias_up_to=64, constant_bias="between")
    counts = {name: parameter.numel() / 1e6 for name, parameter in network.named_parameters()}
    volumes = sum(count for name, count in counts.items() if name.endswith("between"))
    assert volumes == pytest.approx(biases, abs=0.05)
    assert sum(counts.values()) == pytest.approx(millions, abs=0.05)


def test_the_triplane_transformers_first_tokens():
    """LRM's code: normal, of variance 1 / width."""
    torch.manual_seed(0)
    tokens = TriplaneTransformer(4, 64, 1, 4, 4.0, 8, 2).tokens
    assert tokens.shape == (1, 192, 64) and tokens.std().item() == pytest.approx(1 / 8, rel=0.03)


def test_a_block_looks_at_the_text_then_at_the_tokens_then_at_itself():
    """Each after a layer normalisation of what it gets, and each added to it (LRM, section 3.2)."""
    torch.manual_seed(0)
    block, x, text = Block(8, 5, 2, 4.0), 3 * torch.randn(2, 6, 8) + 1, torch.randn(2, 7, 5)

    def normalised(values: torch.Tensor) -> torch.Tensor:
        deviation = values.var(-1, unbiased=False, keepdim=True)
        return (values - values.mean(-1, keepdim=True)) / (deviation + 1e-6).sqrt()

    seen = x + block.text_attention(normalised(x), text)
    seen = seen + block.token_attention(normalised(seen), normalised(seen))
    torch.testing.assert_close(block(x, text), seen + block.mlp(normalised(seen)), atol=1e-5, rtol=1e-5)
