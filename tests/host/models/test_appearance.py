"""Materials and backgrounds."""

import math

import pytest
import torch
import torch.nn.functional as F

import threestudio
from threestudio.utils.errors import UserError


def make(name, **config):
    torch.manual_seed(0)
    return threestudio.find(name)(config)


def surface(n=50):
    g = torch.Generator().manual_seed(0)
    normal = F.normalize(torch.randn(n, 3, generator=g), dim=-1)
    return {
        "features": torch.randn(n, 3, generator=g),
        "positions": torch.randn(n, 3, generator=g),
        "shading_normal": normal,
        "light_positions": torch.tensor([[1.0, 2, 3]]).expand(n, 3),
    }


def test_no_material_is_an_activation_or_a_network():
    features = torch.randn(7, 3)
    torch.testing.assert_close(make("no-material")(features=features, unused=1), features.sigmoid())
    mlp = {"otype": "VanillaMLP", "n_neurons": 4, "n_hidden_layers": 1}
    material = make(
        "no-material", n_output_dims=4, input_feature_dims=3, mlp_network_config=mlp, color_activation="none"
    )
    out = material(features=features.view(1, 7, 3))
    assert out.shape == (1, 7, 4)
    torch.testing.assert_close(out[0], material.network(features))
    assert make("no-material").requires_normal is False and make("no-material", requires_normal=True).requires_normal
    assert make("no-material").export(features=features)["albedo"].shape == (7, 3)


def test_no_material_errors_name_the_key():
    with pytest.raises(UserError, match="n_output_dims"):
        make("no-material")(features=torch.zeros(1, 4))
    with pytest.raises(UserError, match="go together"):
        make("no-material", input_feature_dims=3)


def test_neural_radiance_changes_with_the_view():
    material = make("neural-radiance-material", input_feature_dims=3)
    features, directions = torch.randn(2, 7, 3), F.normalize(torch.randn(2, 7, 3), dim=-1)
    colors = material(features=features, viewdirs=directions, unused=1)
    assert colors.shape == (2, 7, 3) and not torch.allclose(colors, material(features=features, viewdirs=-directions))
    encoded = material.encoding((directions.view(-1, 3) + 1) / 2)
    expected = material.network(torch.cat([features.view(-1, 3), encoded], -1)).sigmoid()
    torch.testing.assert_close(colors, expected.view(2, 7, 3))
    # A network that looks at features alone has in a texture the colour that it has from everywhere.
    with torch.no_grad():
        material.network.layers[0].weight[:, 3:] = 0
    torch.testing.assert_close(
        material.export(features=features)["albedo"], material(features=features, viewdirs=directions)
    )
    with pytest.raises(UserError, match=r"expected 3 feature channels \(input_feature_dims\), got 4"):
        material(features=torch.randn(7, 4), viewdirs=directions[0])


def test_hybrid_colours_and_latents():
    material, features = make("hybrid-rgb-latent-material", n_output_dims=7), torch.randn(5, 7)
    out = material(features=features, unused=1)
    torch.testing.assert_close(out, torch.cat([features[:, :3].sigmoid(), features[:, 3:]], 1))
    assert material.requires_normal and material.export(features=features)["albedo"].shape == (5, 3)
    with pytest.raises(UserError, match=r"expected 7 feature channels \(n_output_dims\), got 3"):
        material(features=features[:, :3])


def test_diffuse_shading_is_lambert():
    material, s = make("diffuse-with-point-light-material"), surface()
    to_light = F.normalize(s["light_positions"] - s["positions"], dim=-1)
    shade = (to_light * s["shading_normal"]).sum(-1, keepdim=True).clamp(min=0) * 0.9 + 0.1
    albedo = s["features"].sigmoid()
    torch.testing.assert_close(material(**s, shading="diffuse"), albedo * shade)
    torch.testing.assert_close(material(**s, shading="textureless"), shade.expand(-1, 3))
    torch.testing.assert_close(material(**s, shading="albedo"), albedo)
    torch.testing.assert_close(material(**s, shading="diffuse", ambient_ratio=1.0), albedo)
    torch.testing.assert_close(
        material(**s, shading="diffuse", ambient_ratio=0.4), albedo * ((shade - 0.1) / 0.9 * 0.6 + 0.4)
    )
    torch.testing.assert_close(material.export(features=s["features"])["albedo"], albedo)
    assert material.requires_normal


def drawn(material, n=400):
    s = surface(4)
    kinds = {
        "albedo": material(**s, shading="albedo"),
        "textureless": material(**s, shading="textureless"),
        "diffuse": material(**s, shading="diffuse"),
    }
    counts = dict.fromkeys(kinds, 0)
    for _ in range(n):
        out = material(**s)
        counts[next(k for k, v in kinds.items() if torch.allclose(out, v))] += 1
    return {k: v / n for k, v in counts.items()}


def test_shading_is_drawn_with_the_configured_chances():
    material = make("diffuse-with-point-light-material", ambient_only_steps=10, diffuse_prob=0.75, textureless_prob=0.4)
    material.do_update_step(0, 5)
    assert drawn(material, 20)["albedo"] == 1
    material.do_update_step(0, 10)
    shares = drawn(material)
    assert shares["albedo"] == pytest.approx(0.25, abs=0.07)
    assert shares["textureless"] == pytest.approx(0.75 * 0.4, abs=0.07)
    assert drawn(material.eval(), 20)["diffuse"] == 1
    assert drawn(make("diffuse-with-point-light-material", ambient_only_on_test=True).eval(), 20)["albedo"] == 1


def test_draws_follow_the_global_generator():
    material, s = make("diffuse-with-point-light-material", soft_shading=True), surface()
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(torch.stack([material(**s) for _ in range(5)]))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_every_factor_stays_in_the_graph():
    material, s = make("diffuse-with-point-light-material"), surface()
    for shading in ("albedo", "textureless", "diffuse"):
        features, normal = s["features"].requires_grad_(), s["shading_normal"].requires_grad_()
        grads = torch.autograd.grad(material(**s, shading=shading).sum(), [features, normal], allow_unused=True)
        assert all(g is not None for g in grads)


def test_material_errors_name_the_key():
    with pytest.raises(UserError, match="shading"):
        make("diffuse-with-point-light-material")(**surface(), shading="phong")
    with pytest.raises(UserError, match="ambient_light_color"):
        make("diffuse-with-point-light-material", ambient_light_color=[0.1, 0.2])


DIRS = F.normalize(torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.mark.parametrize("name", ["neural-environment-map-background", "solid-color-background", "textured-background"])
def test_backgrounds_give_colours(name):
    out = make(name)(dirs=DIRS)
    assert out.shape == (2, 4, 5, 3) and out.min() >= 0 and out.max() <= 1
    four = {"color": [0.1, 0.2, 0.3, 0.4]} if name.startswith("solid") else {}
    assert make(name, n_output_dims=4, **four)(dirs=DIRS).shape == (2, 4, 5, 4)


@pytest.mark.parametrize("name", ["neural-environment-map-background", "solid-color-background"])
def test_random_backgrounds_only_while_training(name):
    background = make(name, random_aug=True, random_aug_prob=1.0)
    out = background(dirs=DIRS)
    assert (out[0] == out[0, 0, 0]).all() and not torch.equal(out[0, 0, 0], out[1, 0, 0])
    never = make(name, random_aug=True, random_aug_prob=0.0)
    torch.testing.assert_close(never(dirs=DIRS), background.eval()(dirs=DIRS))


def test_replaced_colours_keep_parameters_in_the_graph():
    background = make("neural-environment-map-background", random_aug=True, random_aug_prob=1.0)
    background(dirs=DIRS).sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in background.parameters())


def test_evaluation_colour_and_learned_colour():
    background = make("neural-environment-map-background", eval_color=[0, 0.5, 1])
    assert background(dirs=DIRS).std() > 0
    assert torch.equal(background.eval()(dirs=DIRS)[1, 2, 3], torch.tensor([0.0, 0.5, 1.0]))
    assert [p.shape for p in make("solid-color-background", learned=True).parameters()] == [torch.Size([3])]
    with pytest.raises(UserError, match="eval_color"):
        make("neural-environment-map-background", eval_color=[0.5, 0.5, 0.5], n_output_dims=4)
    with pytest.raises(UserError, match="background.color"):
        make("solid-color-background", n_output_dims=4)


def test_texture_is_looked_up_by_latitude_and_longitude():
    background = make("textured-background", height=3, width=4, color_activation="none")
    with torch.no_grad():
        background.texture.zero_()
        background.texture[0, :, 0] = 1.0  # the top row
    up, down = torch.tensor([[[[0.0, 0, 1]]]]), torch.tensor([[[[0.0, 0, -1]]]])
    assert background(dirs=up).min() > 0.9 and background(dirs=down).max() < 0.1
    level = torch.tensor([[[[math.cos(a), math.sin(a), 0.0] for a in (0.0, 1.0, 2.0)]]])
    assert background(dirs=level).abs().max() < 1e-5
