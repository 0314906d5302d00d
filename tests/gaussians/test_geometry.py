"""The registered geometry: its starts, schedules, checkpoints and files."""

import math

import pytest
import torch
import trimesh
from turboprop.gaussians.geometry import GaussianSplatting
from turboprop.gaussians.ply import read_3dgs_ply, write_3dgs_ply

import threestudio
from threestudio.utils.errors import UserError

SMALL = {"init_num_pts": 20, "isosurface_resolution": 24}


def geometry_of(**cfg) -> GaussianSplatting:
    return GaussianSplatting({**SMALL, **cfg})


def test_it_is_registered_under_both_names():
    assert threestudio.find("gaussian-splatting") is GaussianSplatting
    assert threestudio.find("turboprop-gaussian-splatting") is GaussianSplatting


def test_the_first_gaussians():
    torch.manual_seed(0)
    geometry = geometry_of(opacity_init=0.3, pc_init_radius=0.5, sh_degree=2, pred_normal=True)
    gaussians = geometry.gaussians()
    assert geometry.count == 20 and gaussians.sh.shape == (20, 9, 3)
    assert gaussians.means.norm(dim=-1).max() <= 0.5 and torch.allclose(gaussians.opacities, torch.full((20,), 0.3))
    names = {name for name, _ in geometry.named_parameters()}
    assert names == {"means", "log_scales", "quaternions", "opacity_logits", "sh_dc", "sh_rest", "normals"}
    assert torch.allclose(
        geometry_of(shape_init="sphere", pc_init_radius=0.5).means.norm(dim=-1), torch.full((20,), 0.5)
    )


def test_starts_from_files(tmp_path):
    source = geometry_of(sh_degree=1)
    with torch.no_grad():
        source.sh_rest.normal_()
        source.quaternions.normal_()
    source.export_gaussians_ply(tmp_path / "deep" / "a.ply")
    copy = geometry_of(geometry_convert_from=str(tmp_path / "deep" / "a.ply"), sh_degree=2)
    assert torch.equal(copy.means, source.means) and torch.equal(copy.sh_rest[:, :3], source.sh_rest)
    points = geometry_of(
        geometry_convert_from=str(tmp_path / "deep" / "a.ply"), load_ply_only_vertex=True, opacity_init=0.7
    )
    assert torch.equal(points.means, source.means) and torch.allclose(
        points.gaussians().opacities, torch.full((20,), 0.7)
    )
    assert torch.allclose(points.colors(), source.colors(), atol=1e-5)
    trimesh.creation.box((1.0, 1.0, 1.0)).export(tmp_path / "box.obj")
    for key in ({"geometry_convert_from": str(tmp_path / "box.obj")}, {"shape_init": f"mesh:{tmp_path / 'box.obj'}"}):
        surface = geometry_of(init_num_pts=50, **key)
        assert surface.count == 50 and torch.allclose(surface.means.abs().amax(1), torch.full((50,), 0.5), atol=1e-6)
    state = {f"geometry.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 0, "global_step": 5}, tmp_path / "last.ckpt")
    loaded = geometry_of(geometry_convert_from=str(tmp_path / "last.ckpt"))
    assert torch.equal(loaded.means, source.means) and "sh_rest" not in loaded.raw()


@pytest.mark.parametrize(
    "cfg, message",
    [
        ({"sh_degree": 4}, "sh_degree: expected 0 to 3, got 4"),
        ({"opacity_init": 1.0}, "geometry.opacity_init: expected between 0 and 1"),
        ({"sh_degree": 4}, "geometry.sh_degree: expected 0 to 3, got 4"),
        ({"init_num_pts": 0}, "geometry.init_num_pts: expected more than 0"),
        ({"smoothing": -0.1}, "geometry.smoothing: expected a number from 0 on, got -0.1"),
        ({"shape_init": "cube"}, "geometry.shape_init: expected ball, sphere or mesh:<file>, got 'cube'"),
        ({"geometry_convert_from": "shap-e:a chair"}, "shap-e is not available here"),
        ({"position_lr": [1, 2]}, "position_lr: expected a number, or a schedule"),
        ({"min_opac_prune": [0, 1, 2, 3, 4]}, "min_opac_prune: expected a number, or a schedule"),
        ({"densify_gradthreshold": 1}, "densify_grad_threshold"),
    ],
)
def test_wrong_configs_are_said(cfg, message):
    with pytest.raises(Exception, match=message) as raised:
        geometry_of(**cfg)
    assert isinstance(raised.value, ValueError)


def test_schedules():
    geometry = geometry_of(
        sh_degree=3, sh_degree_interval=10, position_lr=[0, 0.01, 0.0001, 100], feature_lr=0.02,
        color_clip=[0, 1.0, 2.0, 10], densify_grad_threshold=[0, 0.1, 0.2, 10],
    )  # fmt: skip
    rates = geometry.learning_rates(0, 50)
    assert (
        rates["means"] == pytest.approx(0.001) and rates["sh_dc"] == 0.02 and rates["sh_rest"] == pytest.approx(0.001)
    )
    degrees = []
    for step in (0, 9, 10, 25, 1000):
        geometry.do_update_step(0, step)
        degrees.append(geometry.active_sh_degree)
    assert degrees == [0, 0, 1, 2, 3] and geometry.color_limit == 2.0
    assert geometry.density_control(0, 5).densify_grad_threshold == pytest.approx(0.15)
    assert geometry.density_control(0, 5).largest_scale == math.inf
    assert geometry_of(prune_big_points=True, radius=2.0).density_control(0, 0).largest_scale == 0.5


def test_a_checkpoint_of_another_number_is_taken_over():
    torch.manual_seed(0)
    source, target = geometry_of(init_num_pts=31, sh_degree=1), geometry_of(sh_degree=1)
    source.observe(torch.randn(2, 31, 2), torch.rand(2, 31), torch.ones(2, 31, dtype=torch.bool), 8, 8)
    target.load_state_dict(source.state_dict())
    assert target.count == 31
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name]), name
    assert target.gradient_sum.sum() > 0 and all(p.requires_grad for p in target.parameters())


def upstream_weights(source: GaussianSplatting) -> dict[str, torch.Tensor]:
    """The Gaussians as threestudio-3dgs's checkpoints have them."""
    raw = {name: value.detach().clone() for name, value in source.raw().items()}
    return {
        "_xyz": raw["means"], "_scaling": raw["log_scales"], "_rotation": raw["quaternions"],
        "_opacity": raw["opacity_logits"][:, None], "_features_dc": raw["sh_dc"],
        "_features_rest": raw.get("sh_rest", torch.zeros(source.count, 0, 3)),
    }  # fmt: skip


@pytest.mark.parametrize("degree", [0, 2])
def test_a_checkpoint_of_threestudio_3dgs_is_taken_over(degree, tmp_path):
    torch.manual_seed(0)
    source, target = geometry_of(init_num_pts=31, sh_degree=degree), geometry_of(sh_degree=degree)
    torch.nn.init.normal_(source.quaternions)
    target.load_state_dict(upstream_weights(source))
    state = {f"geometry.{name}": value for name, value in upstream_weights(source).items()}
    torch.save({"state_dict": state, "epoch": 0, "global_step": 9}, tmp_path / "last.ckpt")
    converted = geometry_of(sh_degree=degree, geometry_convert_from=str(tmp_path / "last.ckpt"))
    loaded = geometry_of(sh_degree=degree, weights=f"{tmp_path / 'last.ckpt'}:geometry")
    for geometry in (target, converted, loaded):
        assert geometry.count == 31 and torch.equal(geometry.statistics.view_count, torch.zeros(31))
        for name, value in source.raw().items():
            assert torch.equal(value, geometry.raw()[name]), name


def test_density_steps_keep_optimizer_and_parameters_together():
    torch.manual_seed(0)
    geometry = geometry_of(
        densify_from_iter=0, densification_interval=2, prune_interval=4, prune_from_iter=0,
        densify_grad_threshold=0.5, split_thresh=0.1, max_num=30,
    )  # fmt: skip
    optimizer = torch.optim.Adam([{"params": [p], "name": n} for n, p in geometry.raw().items()], lr=0.01)
    counts = []
    for step in range(1, 9):
        optimizer.zero_grad()
        gaussians = geometry.gaussians()
        (gaussians.means.square().sum() + gaussians.scales.sum() + gaussians.opacities.sum() + gaussians.sh.sum()
         + gaussians.quaternions.square().sum()).backward()  # fmt: skip
        gradients = torch.randn(1, geometry.count, 2) * 0.3
        visible = torch.ones(1, geometry.count, dtype=torch.bool)
        geometry.observe(gradients, torch.rand(1, geometry.count), visible, 4, 4)
        optimizer.step()
        change = geometry.density_step(optimizer, 0, step)
        assert (change is not None) == (step % 2 == 0)
        counts.append(geometry.count)
    assert 20 < max(counts) <= 30
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in geometry.raw().values()} == {id(p) for p in optimizer.state}
    assert all(state["exp_avg"].shape == p.shape for p, state in optimizer.state.items() if "exp_avg" in state)
    assert all(value.shape == (geometry.count,) for value in geometry.statistics)


def test_files_say_what_is_rendered(tmp_path):
    geometry = geometry_of(sphere=True, color_clip=1.0, smoothing=0.5)
    with torch.no_grad():
        geometry.log_scales.normal_()
        geometry.sh_dc.normal_(std=3.0)
    geometry.export_gaussians_ply(tmp_path / "a.ply")
    written, gaussians = read_3dgs_ply(tmp_path / "a.ply"), geometry.gaussians()
    assert torch.allclose(written["log_scales"].exp(), gaussians.scales)
    assert torch.equal(written["sh_dc"], gaussians.sh) and written["sh_dc"].abs().max() == 1.0


def two_balls() -> GaussianSplatting:
    """A large red ball and a small blue one beside it."""
    geometry = geometry_of(isosurface_resolution=40, isosurface_outlier_n_faces_threshold=0.0)
    parameters = {name: value[:2].detach().clone() for name, value in geometry.raw().items()}
    parameters["means"] = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.8, 0.0]])
    parameters["log_scales"] = torch.tensor([0.3, 0.1]).log()[:, None].expand(2, 3)
    parameters["opacity_logits"] = torch.full((2,), 5.0)
    parameters["sh_dc"] = (torch.tensor([[[0.9, 0.1, 0.1]], [[0.1, 0.1, 0.9]]]) - 0.5) / math.sqrt(1 / (4 * math.pi))
    geometry.set_parameters(parameters)
    return geometry


def test_the_surface_is_closed_and_colored():
    geometry = two_balls()
    mesh = geometry.isosurface()
    solid = trimesh.Trimesh(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy())
    assert solid.is_watertight and solid.volume > 0 and len(solid.split()) == 2
    left = mesh.v_pos[:, 1] < 0.3
    assert torch.allclose(mesh.v_rgb[left].mean(0), torch.tensor([0.9, 0.1, 0.1]), atol=0.05)
    assert torch.allclose(mesh.v_rgb[mesh.v_pos[:, 1] > 0.8].mean(0), torch.tensor([0.1, 0.1, 0.9]), atol=0.05)
    features = geometry.export(points=mesh.v_pos)["features"]
    assert torch.allclose(torch.sigmoid(features), mesh.v_rgb, atol=1e-3)
    geometry.cfg.isosurface_outlier_n_faces_threshold = 0.5
    assert geometry.isosurface().v_pos[:, 1].max() < 0.5


def test_other_geometries_become_gaussians(tmp_path):
    source = two_balls()
    copy = GaussianSplatting.create_from(source, {**SMALL, "sh_degree": 1})
    assert torch.equal(copy.means, source.means) and copy.sh_rest.shape == (2, 3, 3)

    class OnlySurface(threestudio.find("implicit-volume")):
        def isosurface(self):
            return source.isosurface()

    other = OnlySurface({"pos_encoding_config": {"otype": "ProgressiveBandFrequency", "n_frequencies": 2}})
    torch.manual_seed(0)
    made = GaussianSplatting.create_from(other, {"init_num_pts": 400})
    assert made.count == 400
    near = made.means.norm(dim=-1) < 0.5
    assert torch.allclose(made.colors()[near].mean(0), torch.tensor([0.9, 0.1, 0.1]), atol=0.05)
    assert torch.allclose(
        made.means[near].norm(dim=-1),
        torch.full((int(near.sum()),), 0.3 * math.sqrt(2 * math.log(2 * 0.9933))),
        atol=0.03,
    )


def test_a_file_that_is_no_gaussians_is_said(tmp_path):
    geometry = geometry_of()
    write_3dgs_ply(tmp_path / "a.ply", geometry.raw())
    content = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="a.ply: cut short"):
        geometry_of(geometry_convert_from=str(tmp_path / "a.ply"))
    torch.save({"state_dict": {"geometry.other": torch.zeros(1)}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="has no Gaussians"):
        geometry_of(geometry_convert_from=str(tmp_path / "last.ckpt"))


def test_the_export_format_is_for_gaussians(tmp_path):
    """Refused before anything is trained or baked where the geometry has no Gaussians."""
    parts = {"material": threestudio.find("no-material")({}), "background": None}
    with pytest.raises(UserError, match="exporter.fmt: 3dgs-ply is for geometries of Gaussians, VolumeGrid has none"):
        field = threestudio.find("volume-grid")({"grid_size": [8, 8, 8]})
        threestudio.find("mesh-exporter")({"fmt": "3dgs-ply"}, geometry=field, **parts)
    geometry = geometry_of()
    (output,) = threestudio.find("mesh-exporter")({"fmt": "3dgs-ply"}, geometry=geometry, **parts)()
    output.params["write"](str(tmp_path / output.save_name))
    assert output.save_name == "model.ply" and torch.equal(
        read_3dgs_ply(tmp_path / "model.ply")["means"], geometry.means
    )


def test_a_missing_file_is_named_with_its_key(tmp_path):
    for key, value in (("shape_init", f"mesh:{tmp_path}/none.glb"), ("geometry_convert_from", f"{tmp_path}/none.ply")):
        with pytest.raises(UserError, match=f"geometry.{key}: no file .*none"):
            geometry_of(**{key: value})
