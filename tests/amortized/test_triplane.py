"""The Triplane-Transformer's parts: planes and what is read from them, the network at the paper's size."""

import pytest
import torch
from torch.nn import functional as F
from turboprop.amortized.plane_sampling import PLANES, PlaneSpace
from turboprop.amortized.triplane_transformer import Attention, TriplaneTransformer

import threestudio


def test_parameters_are_the_papers():
    """120.5 million, counted without making them."""
    cfg = threestudio.find("Triplane-transformer-sdf").Config()
    with torch.device("meta"):
        network = TriplaneTransformer(
            cfg.text_dim, cfg.inner_dim, cfg.num_layers, cfg.num_heads, cfg.mlp_ratio, cfg.triplane_low_res,
            cfg.triplane_dim,
        )  # fmt: skip
        planes = network(torch.zeros(1, 77, 1024))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 120.5
    assert planes.shape == (1, 3, 32, 64, 64)


def test_features_are_torchs_interpolation_of_each_plane():
    torch.manual_seed(0)
    planes = torch.randn(2, 3, 4, 8, 8, dtype=torch.double, requires_grad=True)
    points, owner = torch.rand(50, 3, dtype=torch.double) * 2.4 - 1.2, torch.randint(2, (50,))
    found = PlaneSpace.of(planes).features(points, owner)
    expected = []
    for plane, pair in enumerate(PLANES):
        places = points[:, pair].expand(2, 1, -1, -1)
        read = F.grid_sample(planes[:, plane], places, padding_mode="border", align_corners=False)  # [2, 4, 1, 50]
        expected.append(read[owner, :, 0, torch.arange(50)])
    expected = torch.cat(expected, -1)
    torch.testing.assert_close(found, expected)
    factor = torch.randn_like(found)
    torch.testing.assert_close(*(torch.autograd.grad((x * factor).sum(), planes)[0] for x in (found, expected)))


@pytest.mark.parametrize("plane, blind", [(0, 2), (1, 1), (2, 0)])
def test_a_plane_does_not_see_the_axis_that_it_lies_across(plane, blind):
    planes = torch.zeros(1, 3, 2, 4, 4)
    planes[:, plane] = torch.randn(2, 4, 4)
    space, owner = PlaneSpace.of(planes), torch.zeros(6, dtype=torch.int64)
    here = torch.rand(6, 3) - 0.5
    for axis in range(3):
        moved = here + 0.3 * torch.eye(3)[axis]
        same = torch.allclose(space.features(here, owner), space.features(moved, owner))
        assert same == (axis == blind)


def test_attention_is_the_weighted_mean_of_values():
    torch.manual_seed(0)
    layer = Attention(4, 3, 2).double()
    x, context = torch.randn(1, 5, 4).double(), torch.randn(1, 7, 3).double()
    parts = []
    for head in (slice(0, 2), slice(2, 4)):
        query, key, value = layer.query(x)[..., head], layer.key(context)[..., head], layer.value(context)[..., head]
        parts.append(torch.softmax(query @ key.transpose(1, 2) / 2**0.5, -1) @ value)
    torch.testing.assert_close(layer(x, context), layer.output(torch.cat(parts, -1)))


def test_a_pooled_text_is_one_token():
    cfg = {
        "text_dim": 6, "inner_dim": 8, "num_layers": 1, "num_heads": 2, "triplane_low_res": 4, "triplane_dim": 2,
        "radius": 1.0, "sphere_radius": 0.5,
    }  # fmt: skip
    torch.manual_seed(0)
    pooled = threestudio.find("turboprop-triplane-transformer")({**cfg, "local_text": False})
    torch.manual_seed(0)
    local = threestudio.find("turboprop-triplane-transformer")(cfg)
    assert local.local_text and not pooled.local_text
    text = torch.randn(2, 6)
    made = [
        shape.generate_space_cache(torch.zeros(2, 0), given).space.table
        for shape, given in ((pooled, text), (local, text[:, None]))
    ]
    assert torch.equal(*made)
