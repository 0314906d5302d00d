"""Losses, schedules of their weights, and the shading that they see, by hand."""

import math

import pytest
import torch
from turboprop.gaussians.losses import PICTURE_LOSSES
from turboprop.gaussians.parameters import Gaussians

import threestudio
from threestudio.models.mesh import Mesh
from threestudio.systems import losses
from threestudio.systems.sjc import BACKGROUND_DEPTH
from threestudio.utils.loss import tv_loss
from threestudio.utils.misc import C


def test_orientation():
    """Ref-NeRF, equation 11: weights times the squared positive cosine, by ray; no gradient to the weights."""
    weights = torch.tensor([[0.5], [0.25]], requires_grad=True)
    normal = torch.tensor([[0.6, 0.8, 0.0], [-1.0, 0.0, 0.0]], requires_grad=True)
    directions = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    loss = losses.orientation_loss(weights, normal, directions, torch.tensor(2))
    assert loss.item() == pytest.approx(0.5 * 0.36 / 2)
    loss.backward()
    assert weights.grad is None and normal.grad[0, 0].item() == pytest.approx(0.5 * 2 * 0.6 / 2)


OPACITY = torch.tensor([0.0, 0.3, 1.0]).view(1, 1, 3, 1)


def test_sparsity():
    """DreamFusion, appendix A.2: mean of sqrt(o^2 + 0.01)."""
    assert losses.sparsity_loss(OPACITY).item() == pytest.approx((0.1 + 0.1**0.5 + 1.01**0.5) / 3)


def test_binary_entropy():
    """-o ln o - (1 - o) ln(1 - o), o kept 0.001 off both ends."""
    end = -(0.001 * math.log(0.001) + 0.999 * math.log(0.999))
    inside = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert losses.opaque_loss(OPACITY).item() == pytest.approx((2 * end + inside) / 3, rel=1e-4)


def test_gaussians_have_the_same_losses_of_pictures():
    out = {"opacity": OPACITY, "comp_rgb": OPACITY.expand(1, 1, 3, 3), "depth": torch.cat([OPACITY, 2 * OPACITY], 1)}
    found = {name: loss(out).item() for name, loss in PICTURE_LOSSES.items() if name != "tv_loss"}
    across, down = (0.3**2 + 0.7**2) * (1 + 4) / 4, (0.3**2 + 1) / 3
    expected = {"sparsity": losses.sparsity_loss(OPACITY), "opaque": losses.opaque_loss(OPACITY)}
    assert found == pytest.approx({name: loss.item() for name, loss in expected.items()} | {
        "depth_tv_loss": 2 * (across + down)
    })  # fmt: skip


def test_gaussians_losses_under_threestudio_3dgs_name():
    """Sums over the Gaussians, of opacity times the length of the scales, which it does not move, and of scales.

    Depth is smoothed together with normals, where a renderer gives them in training. Under our own name a loss is a
    mean, and the number of Gaussians does not matter.
    """
    scales = torch.tensor([[0.3, 0.4, 0.0], [0.0, 0.0, 2.0]], requires_grad=True)
    gaussians = Gaussians(torch.zeros(2, 3), scales, torch.zeros(2, 4), torch.tensor([0.5, 0.25]), torch.zeros(2, 1, 3))
    theirs, ours = (
        threestudio.find(name) for name in ("gaussian-splatting-system", "turboprop-gaussian-splatting-system")
    )
    opacity = theirs.gaussian_losses["opacity"](gaussians)
    assert opacity.item() == pytest.approx(0.5 * 0.5 + 0.25 * 2) and not opacity.requires_grad
    assert theirs.gaussian_losses["scales"](gaussians).item() == pytest.approx(2.7)
    assert ours.gaussian_losses["opacity"](gaussians).item() == pytest.approx(0.375)
    assert ours.gaussian_losses["scales"](gaussians).item() == pytest.approx(2.7 / 6)
    depth = torch.tensor([[0.0, 1.0], [3.0, 5.0]]).view(1, 2, 2, 1)
    assert theirs.picture_losses["depth_tv_loss"]({"depth": depth}).item() == 0
    both = {"depth": depth, "comp_depth": depth, "comp_normal": 2 * depth}
    assert theirs.picture_losses["depth_tv_loss"](both).item() == pytest.approx(30 + 4 * 30)
    assert ours.picture_losses["depth_tv_loss"](both).item() == pytest.approx(30)


def test_eikonal():
    """Mean of (|grad s| - 1)^2 (Gropp et al. 2020, equation 3)."""
    gradient = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.5, 0.0]])
    assert losses.eikonal_loss(gradient).item() == pytest.approx((16 + 0.25) / 2)


def test_z_variance_is_of_rays_more_than_half_opaque():
    variance, opacity = torch.tensor([2.0, 4.0, 50.0]), torch.tensor([0.9, 0.6, 0.5])
    assert losses.z_variance_loss(variance, opacity).item() == 3.0


def test_total_variation_has_threestudios_factor():
    """One channel (0 1; 3 5): rows differ by 3 and 4, columns by 1 and 2: 2 (25/2 + 5/2)."""
    image = torch.tensor([[0.0, 1.0], [3.0, 5.0]]).view(1, 1, 2, 2)
    assert tv_loss(image).item() == pytest.approx(30)
    both = torch.cat([image, torch.zeros_like(image)], 1)  # a mean over channels, and over images
    assert tv_loss(both).item() == pytest.approx(15) and tv_loss(torch.cat([both, both])).item() == pytest.approx(15)


def tetrahedron() -> Mesh:
    """A corner of the unit cube: each vertex has the three others for neighbours."""
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], requires_grad=True)
    return Mesh(corners, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))


def test_the_laplacian_is_not_divided_by_valence():
    """Rows of D - A times v: 3 v_0 - (v_1 + v_2 + v_3) = (-1, -1, -1), and (3, -1, -1) and its like."""
    loss = tetrahedron().laplacian()
    assert loss.item() == pytest.approx((3**0.5 + 3 * 11**0.5) / 4)


def test_normal_consistency():
    """1 - cos between vertex normals at each edge's ends; edges from the corner are 1 long, the others sqrt(2)."""
    mesh = tetrahedron()
    # twice the areas times normals: (0, 0, -1), (0, -1, 0), (-1, 0, 0), (1, 1, 1)
    corner = torch.tensor([-1.0, -1, -1]) / 3**0.5
    others = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1]]), dim=-1)
    torch.testing.assert_close(mesh.v_nrm.detach()[0], corner)
    torch.testing.assert_close(mesh.v_nrm.detach()[1:], others)
    to_corner, between = 1 + 1 / 3**0.5, 1.0
    expected = (3 * to_corner + 3 * 2**0.5 * between) / (3 + 3 * 2**0.5)
    assert mesh.normal_consistency().item() == pytest.approx(expected)


def test_score_jacobian_chainings_losses():
    """Its section 5.2: log(1 + 10 w); log of how much farther the middle is than the border, by its sign.

    What a ray misses lies 10 units away for it, as in the authors' code.
    """
    assert BACKGROUND_DEPTH == 10
    assert losses.emptiness_loss(torch.tensor([[0.0], [0.3]]), 10.0).item() == pytest.approx(math.log(4) / 2)
    depth = torch.full((1, 4, 4), 2.0)
    depth[0, 1:3, 1:3] = 5.0
    assert losses.center_depth_loss(depth, 0.5).item() == pytest.approx(math.log(3))
    assert losses.center_depth_loss(-depth, 0.5).item() == pytest.approx(-math.log(3))


def test_sdis_convexity():
    """Sines of the turns about the third axis, left to right and bottom to top, with a minus: both grow."""
    a = math.radians(30)
    columns = torch.tensor([[1.0, 0, 0], [math.cos(a), math.sin(a), 0]])  # left, right
    normal = columns.expand(1, 2, 2, 3)
    assert losses.convexity_loss(normal, 2).item() == pytest.approx(-math.sin(a))
    assert losses.convexity_loss(normal.transpose(1, 2), 2).item() == pytest.approx(math.sin(a))


SCHEDULES = [
    (2.5, 0, 7, 2.5),
    ([100, 1.0, 3.0, 200], 0, 50, 1.0),
    ([100, 1.0, 3.0, 200], 0, 125, 1.5),
    ([100, 1.0, 3.0, 200], 0, 900, 3.0),
    ([1.0, 3.0, 200], 0, 50, 1.5),
    ([0, 0.0, 10.0, 10.0], 5, 999, 5.0),  # a float end counts epochs
    ([0, 1.0, 3.0, 100, 5.0, 300, 0.0, 400], 0, 50, 2.0),
    ([0, 1.0, 3.0, 100, 5.0, 300, 0.0, 400], 0, 200, 4.0),
    ([0, 1.0, 3.0, 100, 5.0, 300, 0.0, 400], 0, 375, 1.25),
    ([0, 1.0, 3.0, 100, 5.0, 300, 0.0, 400], 0, 500, 0.0),
]


@pytest.mark.parametrize("schedule, epoch, step, value", SCHEDULES)
def test_schedules(schedule, epoch, step, value):
    assert C(schedule, epoch, step) == pytest.approx(value)


def test_exponential_schedules():
    assert C([0, 1.0, 0.01, 100], 0, 50, interpolation="exp") == pytest.approx(0.1)


BLOBS = {"blob_magic3d": 10 * (1 - 0.25 / 0.5), "blob_dreamfusion": 10 * math.exp(-(0.25**2) / (2 * 0.25)), 2.0: 2.0}


@pytest.mark.parametrize("bias", BLOBS)
def test_density_blobs(bias):
    """Magic3D: 10 (1 - |x| / 0.5); DreamFusion: 10 exp(-|x|^2 / (2 0.5^2)); then softplus."""
    geometry = threestudio.find("implicit-volume")({
        "density_bias": bias, "pos_encoding_config": {"otype": "Identity"},
        "mlp_network_config": {"otype": "VanillaMLP", "n_neurons": 4, "n_hidden_layers": 1},
    })  # fmt: skip
    torch.nn.init.zeros_(geometry.density_network.layers[-1].weight)
    found = geometry.forward_density(torch.tensor([[0.0, 0.25, 0.0]])).item()
    assert found == pytest.approx(math.log1p(math.exp(BLOBS[bias])), rel=1e-4)


def test_the_blob_of_a_voxel_grid():
    """threestudio's volume-grid has Magic3D's: 5 (1 - |x| / 0.5) by default, then softplus."""
    grid = threestudio.find("volume-grid")({"grid_size": [4, 4, 4]})
    for distance, before in {0.0: 5.0, 0.25: 2.5, 0.8: -3.0}.items():
        found = grid.forward_density(torch.tensor([[0.0, distance, 0.0]])).item()
        assert found == pytest.approx(math.log1p(math.exp(before)), rel=1e-4)


def test_a_blobs_size_over_steps_by_threestudios_keys():
    anneal = {"min_anneal_step": 10, "max_anneal_step": 20, "start_val": 1.0, "end_val": 2.0}
    volume = threestudio.find("implicit-volume")({"anneal_density_blob_std_config": anneal})
    sizes = []
    for step in (0, 10, 15, 20, 99):
        volume.do_update_step(0, step)
        sizes.append(volume.density_blob_std)
    assert sizes == [0.5, 1.0, 1.5, 2.0, 2.0]


def shaded(step: int, training: bool = False, **config):
    """A point at the origin that faces +x, albedo 1/2, its light along (0.6, 0.8, 0)."""
    config = {"ambient_only_steps": 10, **config}
    material = threestudio.find("diffuse-with-point-light-material")(config).train(training)
    material.do_update_step(0, step)
    return material(
        features=torch.zeros(1, 3),
        positions=torch.zeros(1, 3),
        shading_normal=torch.tensor([[1.0, 0, 0]]),
        light_positions=torch.tensor([[1.2, 1.6, 0]]),
    )[0].tolist()


def test_lambertian_shading():
    """albedo (ambient + diffuse max(0, n . l)) = 0.5 (0.1 + 0.9 * 0.6) (DreamFusion, section 3.1)."""
    assert shaded(10) == pytest.approx([0.32] * 3)


def test_before_ambient_only_steps_validation_shows_albedo():
    assert shaded(9) == pytest.approx([0.5] * 3)
    assert shaded(9, training=True) == pytest.approx([0.5] * 3)
    assert shaded(10, ambient_only_on_test=True) == pytest.approx([0.5] * 3)


def test_soft_shading_mixes_two_lights_of_one_in_sum():
    """Magic3D, as in threestudio: ambient 1 - d and diffuse d, d uniform. At n . l = 0.6 light is 1 - 0.4 d."""
    material = threestudio.find("diffuse-with-point-light-material")({"soft_shading": True}).train()
    torch.manual_seed(0)
    position, normal, light = (torch.tensor([v]) for v in ([0.0, 0, 0], [1.0, 0, 0], [0.6, 0.8, 0]))
    shades = torch.stack([
        material(torch.zeros(1, 3), position, normal, light, shading="textureless")[0, 0] for _ in range(400)
    ])  # fmt: skip
    assert 0.6 <= shades.min() < 0.61 and 0.99 < shades.max() <= 1
    assert shades.mean().item() == pytest.approx(0.8, abs=5 * 0.4 / 12**0.5 / 400**0.5)


def test_shaded_albedo_is_kept_in_range():
    """With another activation albedo may leave [0, 1]; shading takes it cut."""
    material = threestudio.find("diffuse-with-point-light-material")({"albedo_activation": "none"}).eval()
    found = material(
        features=torch.tensor([[3.0, -1.0, 0.5]]),
        positions=torch.zeros(1, 3),
        shading_normal=torch.tensor([[1.0, 0, 0]]),
        light_positions=torch.tensor([[2.0, 0, 0]]),
        shading="diffuse",
    )
    assert found[0].tolist() == pytest.approx([1.0, 0.0, 0.5])
