"""What holds for every prompt-conditioned geometry: its first shape, its gradients, its prompts side by side."""

import math

import pytest
import torch

import threestudio
from tests.amortized.scenes import rays

RADIUS, SPHERE, TEXT, TOKENS = 1.0, 0.5, 6, 5
COMMON = {"radius": RADIUS, "text_dim": TEXT, "hidden_dim": 8, "sphere_radius": SPHERE, "finite_difference_eps": 0.02}
GRID = {"otype": "HashGrid", "n_levels": 3, "n_features_per_level": 2, "log2_hashmap_size": 12, "base_resolution": 4,
        "per_level_scale": 1.5, "backend": "torch"}  # fmt: skip
CONFIGS = {
    "turboprop-3dconv-net": {
        "noise_dim": 0, "style_dim": 8, "feature_dim": 5, "channels": [6, 5, 4], "constant_bias_up_to": 8,
        "layer_noise": False,
    },
    "turboprop-hyper-ingp": {"pos_encoding_config": GRID, "hyper_dim": 7, "lattice_resolution": 16},
    "turboprop-triplane-transformer": {
        "inner_dim": 12, "num_layers": 2, "num_heads": 3, "triplane_low_res": 8, "triplane_dim": 4,
    },
}  # fmt: skip
NAMES = list(CONFIGS)
SCALEDREAMERS = {
    "3DConv-net": "turboprop-3dconv-net",
    "Hyper-iNGP": "turboprop-hyper-ingp",
    "Triplane-transformer-sdf": "turboprop-triplane-transformer",
}


def geometry(name: str, **changes):
    torch.manual_seed(0)
    return threestudio.find(name)({**COMMON, **CONFIGS[name], **changes})


def shaken(name: str, **changes):
    """A geometry whose prompts have shapes and colours of their own."""
    shape = geometry(name, **changes)
    with torch.no_grad():
        for key, parameter in shape.named_parameters():
            if "heads" in key or "encoding" in key:
                parameter.normal_(std=0.3)
    return shape


def texts(shape, prompts: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    tokens = (TOKENS,) if shape.local_text else ()
    return torch.randn(prompts, *tokens, TEXT, generator=generator)


def field_of(shape, prompts: int):
    return shape.generate_space_cache(torch.zeros(prompts, 0), texts(shape, prompts))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_shape_is_a_grey_sphere_for_every_prompt(name):
    shape = geometry(name)
    points = torch.rand(3, 200, 3) * 2 - 1
    out = shape(points, field_of(shape, 3), output_normal=True)
    torch.testing.assert_close(out["sdf"][..., 0], points.norm(dim=-1) - SPHERE, atol=1e-3, rtol=0)
    assert out["features"].shape == (3, 200, 3) and out["features"].abs().max() < 1e-3
    outwards = (out["normal"] * torch.nn.functional.normalize(points, dim=-1)).sum(-1)
    assert outwards.median() > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_each_prompt_is_its_own(name):
    """Fields of several prompts are those of each prompt by itself, and differ."""
    shape = shaken(name).double()
    text, points = texts(shape, 3).double(), (torch.rand(3, 50, 3) * 2 - 1).double()
    together = shape(points, shape.generate_space_cache(torch.zeros(3, 0), text))
    for prompt in range(3):
        its = slice(prompt, prompt + 1)
        alone = shape(points[its], shape.generate_space_cache(torch.zeros(1, 0), text[its]))
        for key in ("sdf", "features"):
            torch.testing.assert_close(together[key][its], alone[key], rtol=1e-9, atol=1e-9)
    same = shape(points[:1].expand(3, -1, -1), shape.generate_space_cache(torch.zeros(3, 0), text))
    assert (same["features"][0] - same["features"][1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_points_of_mixed_prompts_get_their_own(name):
    shape = shaken(name).double()
    field = shape.generate_space_cache(torch.zeros(3, 0), texts(shape, 3).double())
    points, owner = (torch.rand(60, 3) * 2 - 1).double(), torch.randint(3, (60,))
    mixed = field.signed_distance(points, owner)
    for prompt in range(3):
        alone = field.signed_distance(points, torch.full((60,), prompt))
        torch.testing.assert_close(mixed[owner == prompt], alone[owner == prompt], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resolution", [16, 11])
def test_the_lattice_is_the_distance_at_its_points(name, resolution):
    shape = shaken(name).double()
    field = shape.generate_space_cache(torch.zeros(2, 0), texts(shape, 2).double())
    line = ((torch.arange(resolution) + 0.5) / resolution * 2 - 1).double() * RADIUS
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    for prompt, found in enumerate(field.lattice(resolution)):
        expected = field.signed_distance(points, torch.full((len(points),), prompt))
        torch.testing.assert_close(found.reshape(-1), expected.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_from_a_picture(name):
    shape = shaken(name, **({"layer_noise": True} if name == "turboprop-3dconv-net" else {}))
    material = threestudio.find("no-material")({"n_output_dims": 3, "color_activation": "sigmoid"})
    background = threestudio.find("turboprop-plain-background")({})
    options = {"radius": RADIUS, "num_samples_per_ray": 32, "num_samples_per_ray_importance": 0, "min_weight": 1e-4}
    renderer = threestudio.find("turboprop-generative-volsdf-renderer")(
        options, geometry=shape, material=material, background=background
    )
    renderer.train()
    out = renderer(**rays(4, 12), noise=torch.zeros(2, 0), text_embed=texts(shape, 2))
    assert out["comp_rgb"].shape == (4, 12, 12, 3) and out["sdf_grad"].shape[1] == 3
    (out["comp_rgb"].square().mean() + out["sdf_grad"].square().mean()).backward()
    still = [key for key, p in shape.named_parameters() if p.grad is None or not float(p.grad.abs().sum())]
    assert still == []


@pytest.mark.parametrize("name", NAMES)
def test_normals_are_gradients(name):
    """Forward differences of a small step are the derivative."""
    shape = shaken(name).double()
    field = shape.generate_space_cache(torch.zeros(1, 0), texts(shape, 1).double())
    points = (torch.rand(40, 3) - 0.5).double().requires_grad_()
    owner = torch.zeros(40, dtype=torch.int64)
    (exact,) = torch.autograd.grad(field.signed_distance(points, owner).sum(), points)
    found = field.gradient(points.detach(), owner, 1e-7)
    close = (found - exact).norm(dim=-1) < 1e-3  # but where a step crosses from one cell to the next
    assert close.double().mean() > 0.95


@pytest.mark.parametrize("theirs, ours", SCALEDREAMERS.items())
def test_scaledreamers_names(theirs, ours):
    assert issubclass(threestudio.find(theirs), threestudio.find(ours))


BAD = [
    ("turboprop-hyper-ingp", {"hyper_dim": 0}, "geometry.hyper_dim: expected more than 0, got 0"),
    ("turboprop-hyper-ingp", {"hidden_layers": 0}, "geometry.hidden_layers: expected at least 1, got 0"),
    ("turboprop-hyper-ingp", {"lattice_resolution": 1}, "geometry.lattice_resolution: expected at least 2, got 1"),
    ("turboprop-triplane-transformer", {"num_heads": 5}, r"geometry.inner_dim: .* geometry.num_heads \(5\), got 12"),
    ("turboprop-triplane-transformer", {"token_std": 0}, "geometry.token_std: expected more than 0, or null, got 0"),
    ("turboprop-triplane-transformer", {"num_layers": 0}, "geometry.num_layers: expected at least 1, got 0"),
    ("turboprop-triplane-transformer", {"sphere_radius": 2}, "geometry.sphere_radius: expected between 0"),
]


@pytest.mark.parametrize("name, changes, message", BAD)
def test_impossible_values(name, changes, message):
    with pytest.raises(ValueError, match=message):
        geometry(name, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_of_another_width_is_an_error(name):
    shape = geometry(name)
    with pytest.raises(ValueError, match="geometry.text_dim: .* has width 6, the config says 9"):
        field_of(geometry(name, text_dim=9), 1)
    assert math.isclose(field_of(shape, 1).radius, RADIUS)
