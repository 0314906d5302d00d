"""The 3DConv-net at tiny size, and the geometry around it."""

import pytest
import torch
from turboprop.amortized.conv_generator import ConvGenerator, MappingNetwork
from turboprop.amortized.modulated_conv import SynthesisLayer, ToFeatures, doubled

import threestudio

PAPER = [512, 512, 512, 256, 128, 64]  # widths at 4^3 ... 128^3


def generator(**changes) -> ConvGenerator:
    torch.manual_seed(0)
    options = dict(
        text_dim=6, noise_dim=3, style_dim=8, feature_dim=5, channels={4: 6, 8: 5, 16: 4}, constant_bias_up_to=8
    )
    return ConvGenerator(**{**options, **changes})


def geometry(**changes):
    torch.manual_seed(0)
    cfg = dict(
        radius=1.0, text_dim=6, noise_dim=3, style_dim=8, feature_dim=5, hidden_dim=8, channels=[6, 5, 4],
        constant_bias_up_to=8, sphere_radius=0.4,
    )  # fmt: skip
    return threestudio.find("turboprop-3dconv-net")({**cfg, **changes})


def test_shapes_at_the_papers_depth():
    """Its six resolutions, widths divided by 128."""
    widths = {4 * 2**i: max(1, width // 128) for i, width in enumerate(PAPER)}
    net = generator(channels=widths, constant_bias_up_to=64, feature_dim=2)
    assert net.resolution == 128
    assert [block.conv1.weight.shape[0] for block in net.blocks] == list(widths.values())
    with torch.no_grad():
        features = net(torch.randn(1, 3), torch.randn(1, 6), layer_noise=False)
    assert features.shape == (1, 2, 128, 128, 128) and torch.isfinite(features).all()


def test_defaults_are_the_papers():
    cfg = threestudio.find("turboprop-3dconv-net").Config()
    assert list(cfg.channels) == PAPER and cfg.text_dim == 1024 and cfg.constant_bias_up_to == 64


@pytest.mark.parametrize("up_to, expected", [(0, set()), (8, {4, 8}), (16, {4, 8, 16})])
def test_biases_by_voxel_up_to_a_resolution(up_to, expected):
    layers = [m for m in generator(constant_bias_up_to=up_to).modules() if isinstance(m, SynthesisLayer)]
    assert {layer.resolution for layer in layers if layer.place_bias is not None} == expected
    assert {layer.resolution for layer in layers} == {4, 8, 16}


@pytest.mark.parametrize(
    "align_corners, expected",
    # Voxels at 0 and 1: doubled with the faces in place they lie a quarter off either side; else from 0 to 1 evenly.
    [(False, [0.0, 0.25, 0.75, 1.0]), (True, [0.0, 1 / 3, 2 / 3, 1.0])],
)
def test_what_stays_in_place_where_a_grid_is_doubled(align_corners, expected):
    ramp = torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2, 2)
    assert doubled(ramp, align_corners)[0, 0, 3, 0].tolist() == pytest.approx(expected)


def test_scaledreamers_net_keeps_the_corner_voxels_in_place():
    """Every doubling of its net, of layers and of the summed outputs; ours keeps the faces."""
    config = {"space_generator_config": {"z_dim": 1, "w_dim": 2, "c_dim": 1, "img_resolution": 4, "img_channels": 1}}
    for geometry_of, expected in ((threestudio.find("3DConv-net")(config), True), (geometry(), False)):
        parts = [m for m in geometry_of.modules() if isinstance(m, (ToFeatures, SynthesisLayer))]
        assert {part.align_corners for part in parts if getattr(part, "upsample", True)} == {expected}


def test_values_by_voxel_between_the_layers_of_a_resolution():
    """ScaleDreamer's way: one volume a resolution but the first, of variance 1 / width, added to the first layer's."""
    net = generator(constant_bias="between", channels={4: 6, 8: 64, 16: 4})
    first, second, third = net.blocks
    assert first.between is None and third.between is None  # up to 8
    assert second.between.shape == (64, 8, 8, 8) and second.between.std().item() == pytest.approx(1 / 8, rel=0.02)
    assert all(layer.place_bias is None for layer in net.modules() if isinstance(layer, SynthesisLayer))
    x, style, seen = torch.randn(2, 6, 4, 4, 4), torch.randn(2, 8), []
    second.conv1.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    second(x, torch.zeros(2, 5, 4, 4, 4), style, False)
    torch.testing.assert_close(seen[0], second.conv0(x, style, False) + second.between)


@pytest.mark.parametrize("constant_bias", ["layers", "between"])
def test_each_sample_is_its_own(constant_bias):
    """No mixing over the batch."""
    net = generator(constant_bias=constant_bias).eval()
    noise, text = torch.randn(3, 3), torch.randn(3, 6)
    together = net(noise, text, layer_noise=False)
    for i in range(3):
        assert torch.allclose(net(noise[i : i + 1], text[i : i + 1], False)[0], together[i], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_noise_varies_an_object_and_can_be_left_out():
    net = generator()
    text = torch.randn(1, 6)
    assert not torch.allclose(net(torch.randn(1, 3), text, False), net(torch.randn(1, 3), text, False), atol=1e-2)
    without = generator(noise_dim=0)
    assert without(torch.zeros(2, 0), text.expand(2, 6), False).shape == (2, 5, 16, 16, 16)
    mapping = MappingNetwork(0, 6, 8)
    assert torch.equal(mapping(torch.zeros(1, 0), text), mapping.output(text))


def test_a_gap_in_the_resolutions_is_an_error():
    with pytest.raises(ValueError, match=r"expected the resolutions \[4, 8\], got \[4, 16\]"):
        generator(channels={4: 3, 16: 3})


def test_every_parameter_learns():
    net = generator()
    net(torch.randn(2, 3), torch.randn(2, 6), layer_noise=True).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not float(p.grad.abs().sum())] == []


def test_first_shape_is_the_same_sphere_for_every_prompt():
    shape = geometry()
    cache = shape.generate_space_cache(torch.randn(4, 3), 5 * torch.randn(4, 6))
    points = torch.rand(4, 200, 3) * 2 - 1
    out = shape(points, cache)
    assert torch.equal(out["sdf"][..., 0], points.norm(dim=-1) - 0.4)
    assert torch.equal(out["features"], torch.zeros(4, 200, 3))  # plain grey
    assert float(cache.space.table.std()) > 0.1  # though the features differ


def test_layer_noise_only_while_training():
    shape = geometry(layer_noise=True)
    with torch.no_grad():
        for module in shape.modules():
            if isinstance(module, SynthesisLayer):
                module.noise_strength.fill_(1.0)
    noise, text = torch.randn(1, 3), torch.randn(1, 6)
    made = [shape.generate_space_cache(noise, text).space.table for _ in range(2)]
    assert not torch.equal(*made)
    shape.eval()
    made = [shape.generate_space_cache(noise, text).space.table for _ in range(2)]
    assert torch.equal(*made)
    quiet = geometry(layer_noise=False)
    assert torch.equal(*(quiet.generate_space_cache(noise, text).space.table for _ in range(2)))


def test_normals_are_differences_of_the_distance():
    shape = geometry().double()
    with torch.no_grad():
        torch.nn.init.normal_(shape.heads.sdf[-1].weight, std=0.05)
    cache = shape.generate_space_cache(torch.randn(2, 3).double(), torch.randn(2, 6).double())
    points = (torch.rand(2, 40, 3) * 1.6 - 0.8).double()
    out = shape(points, cache, output_normal=True)
    step = shape.cfg.finite_difference_eps
    for axis in range(3):
        ahead = shape(points + step * torch.eye(3).double()[axis], cache)["sdf"]
        assert torch.allclose(out["sdf_grad"][..., axis], (ahead - out["sdf"])[..., 0] / step)
    assert torch.allclose(out["normal"].norm(dim=-1), torch.ones(2, 40).double())


BAD = [
    (dict(radius=0), "geometry.radius: expected more than 0, got 0"),
    (dict(feature_dim=-1), "geometry.feature_dim: expected more than 0, got -1"),
    (dict(sphere_radius=1.5), r"geometry.sphere_radius: expected between 0 and geometry.radius \(1\), got 1.5"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_impossible_values(changes, message):
    with pytest.raises(ValueError, match=message):
        geometry(**changes)


def test_text_of_another_width_and_points_of_another_number():
    shape = geometry()
    with pytest.raises(ValueError, match="geometry.text_dim: .* has width 7, the config says 6"):
        shape.generate_space_cache(torch.randn(1, 3), torch.randn(1, 7))
    cache = shape.generate_space_cache(torch.randn(2, 3), torch.randn(2, 6))
    with pytest.raises(ValueError, match="points of 3 prompts were given for a cache of 2"):
        shape(torch.zeros(3, 1, 3), cache)


def test_scaledreamers_name():
    assert issubclass(threestudio.find("3DConv-net"), threestudio.find("turboprop-3dconv-net"))
