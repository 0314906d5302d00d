"""A density field that stays near a rough mesh: the loss by hand, the guide's place, and runs."""

import math
from dataclasses import asdict

import pytest
import torch
import trimesh
from omegaconf import OmegaConf

import threestudio
from launch import main
from tests.host.launches import ROOT
from threestudio.systems.guide_shape import GuideShapeConfig, configured_guide_shape, guide_shape_losses, shape_loss
from threestudio.utils.errors import UserError

SMALL = [
    "tag=t", "use_timestamp=false", "data.width=16", "data.height=16", "data.eval_width=8", "data.eval_height=8",
    "data.n_test_views=1", "data.n_val_views=1", "system.renderer.num_samples_per_ray=24",
    "system.prompt_processor.prompt=a red chair",
]  # fmt: skip


@pytest.fixture()
def box(tmp_path):
    """0.4 wide, 1 high, 0.6 deep in its file's axes: y up, z to the front."""
    trimesh.creation.box((0.4, 1.0, 0.6)).export(tmp_path / "box.obj")
    return tmp_path / "box.obj"


def guide(path, **changes):
    keys = {**asdict(GuideShapeConfig(guide_shape=str(path))), **changes}
    return configured_guide_shape(OmegaConf.create({**keys, "loss": {"lambda_shape": 1.0}}))


def test_the_loss_by_hand():
    """Far away the field is to be empty or full, near the surface it is free."""
    for distance, density in ((0.6, 2.0), (-0.6, 2.0), (0.1, 5.0), (-0.3, 0.0)):
        occupancy = min(max(1 - math.exp(-0.2 * density), 1e-4), 1 - 1e-4)
        weight = 1 - math.exp(-(distance**2) / (2 * 0.3**2))
        expected = -weight * math.log(occupancy if distance < 0 else 1 - occupancy)
        found = shape_loss(torch.tensor([[density]]), torch.tensor([[distance]]))
        assert found.item() == pytest.approx(expected, rel=1e-4)
    two = shape_loss(torch.tensor([[2.0], [2.0]]), torch.tensor([[0.6], [-0.6]]))  # a sum over the samples
    one = [shape_loss(torch.tensor([[2.0]]), torch.tensor([[d]])) for d in (0.6, -0.6)]
    assert two.item() == pytest.approx(sum(one).item())


def test_it_pulls_matter_in_and_pushes_it_out():
    density = torch.full((3, 1), 3.0, requires_grad=True)
    shape_loss(density, torch.tensor([[-0.5], [0.5], [0.0]])).backward()
    inside, outside, surface = density.grad[:, 0]
    assert inside < 0 < outside and surface == 0
    empty = torch.zeros(1, 1, requires_grad=True)
    huge = torch.full((1, 1), 1e6, requires_grad=True)
    (shape_loss(empty, torch.tensor([[-1.0]])) + shape_loss(huge, torch.tensor([[1.0]]))).backward()
    assert empty.grad.isfinite().all() and huge.grad.isfinite().all()


def test_the_guide_is_centred_sized_and_turned(box):
    shape = guide(box)
    assert shape.read().v_pos.norm(dim=-1).max().item() == pytest.approx(0.7, abs=1e-5)
    scale = 0.7 / (0.2**2 + 0.5**2 + 0.3**2) ** 0.5
    # the file's x (width) is the world's y, its y (height) the world's z, its z (depth) the world's x
    expected = torch.tensor([0.3, 0.2, 0.5]) * scale
    torch.testing.assert_close(shape.read().v_pos.abs().amax(0), expected)
    torch.testing.assert_close(
        shape.distance(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))[:, 0],
        torch.tensor([-0.2 * scale, 1.0 - 0.3 * scale]),
    )
    straight = guide(box, guide_shape_up="+z", guide_shape_front="+x", guide_shape_size=1.0)
    torch.testing.assert_close(straight.read().v_pos.abs().amax(0), torch.tensor([0.2, 0.5, 0.3]) * scale / 0.7)


def test_what_is_wrong_names_its_key(box):
    for changes, message in (
        ({"guide_shape": "none.obj"}, "system.guide_shape: no file none.obj"),
        ({"guide_shape_size": 0.0}, "system.guide_shape_size: expected more than 0, got 0"),
        ({"guide_shape_size": math.inf}, "system.guide_shape_size: expected more than 0, got inf"),
        ({"guide_shape_up": "up"}, "system.guide_shape_up"),
        ({"guide_shape_up": "+z"}, "expected up and front along different axes"),
    ):
        with pytest.raises(UserError, match=message):
            guide(box, **changes).read()
    with pytest.raises(UserError, match="system.guide_shape: it guides fields of density"):
        guide_shape_losses(guide(box), {"sdf": torch.zeros(1, 1)}, lambda name: 1.0)
    assert guide_shape_losses(guide(box), {}, lambda name: 0.0) == {}
    assert guide_shape_losses(None, {}, lambda name: 1.0) == {}


def test_a_field_takes_the_guides_shape(box):
    """Learned from the loss alone, at points in the whole scene: inside and outside are the guide's."""
    shape = guide(box)
    torch.manual_seed(0)
    encoding = {"otype": "HashGrid", "n_levels": 4, "n_features_per_level": 2, "log2_hashmap_size": 12,
                "base_resolution": 4, "per_level_scale": 1.6}  # fmt: skip
    field = threestudio.find("implicit-volume")(
        {"pos_encoding_config": encoding, "n_feature_dims": 0, "density_bias": 0.0, "density_activation": "softplus"}
    )
    optimizer = torch.optim.Adam(field.parameters(), lr=0.01)
    for _ in range(150):
        points = torch.rand(2000, 3) * 2 - 1
        optimizer.zero_grad()
        loss = shape_loss(field(points)["density"], shape.distance(points)) / 2000
        loss.backward()
        optimizer.step()
    points = torch.rand(4000, 3) * 2 - 1
    distance = shape.distance(points)[:, 0]
    opaque = field(points)["density"][:, 0] > 0.5 / 0.2
    clear = distance.abs() > 0.12
    assert (opaque == (distance < 0))[clear].float().mean() > 0.98


@pytest.mark.parametrize("name", ["asd-nerf", "latentnerf"])
def test_runs_have_the_loss(name, box, tiny_sd_folder, text_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = f"pretrained_model_name_or_path={tiny_sd_folder}"
    given = [*SMALL, "trainer.max_steps=2", "trainer.val_check_interval=2", f"system.guide_shape={box}"]
    given += ["system.loss.lambda_shape=0.5", "trainer.log_every_n_steps=1"]
    if name == "latentnerf":
        given += [f"system.prompt_processor.{model}", f"system.guidance.{model}"]
    else:
        given += ["data.resolution_milestones=[]", "data.batch_size=1", "system.evaluation.judge=''"]
    assert main(["--config", str(ROOT / f"configs/{name}.yaml"), "--train", *given]) == 0, capsys.readouterr().err
    logged = (tmp_path / f"outputs/{name}/t/csv_logs/version_0/metrics.csv").read_text()
    header, *rows = [line.split(",") for line in logged.splitlines()]
    values = [float(row[header.index("train/loss_shape")]) for row in rows if row[header.index("train/loss_shape")]]
    assert values and all(value > 0 for value in values)
    if name == "asd-nerf":  # an export needs no guide
        box.unlink()
        trial = tmp_path / "outputs/asd-nerf/t"
        resumed = ["--config", str(trial / "configs/parsed.yaml"), f"resume={trial}/ckpts/last.ckpt"]
        assert main([*resumed, "--export"]) == 0, capsys.readouterr().err
        assert main([*resumed, "--train", "trainer.max_steps=3"]) == 2
        assert "system.guide_shape: no file" in capsys.readouterr().err


def test_a_weight_without_a_guide_is_said(caplog):
    cfg = OmegaConf.create({**asdict(GuideShapeConfig()), "loss": {"lambda_shape": 1.0}})
    assert configured_guide_shape(cfg) is None
    assert "system.loss.lambda_shape: system.guide_shape names no mesh, so it weighs nothing" in caplog.text
