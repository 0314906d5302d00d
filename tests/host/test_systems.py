"""Optimizers, schedules, dreamfusion's losses, and what a scene system writes."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from threestudio.models.mesh import Mesh
from threestudio.systems import losses
from threestudio.systems.adan import Adan
from threestudio.systems.image_reference import ImageReferenceSystem
from threestudio.systems.keyed_steps import non_finite_gradients
from threestudio.systems.magic3d import Magic3D
from threestudio.systems.score_distillation import ScoreDistillationSystem
from threestudio.systems.utils import check_scheduler_lasts, parse_optimizer, parse_scheduler, with_guidance_groups
from threestudio.utils.errors import UserError


class Scene(nn.Module):
    def __init__(self):
        super().__init__()
        self.geometry = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.background = nn.Linear(1, 1)
        self.scale = nn.Parameter(torch.ones(1))


def config(**kwargs):
    return OmegaConf.create(kwargs)


def test_parameter_groups():
    scene = Scene()
    optimizer = parse_optimizer(
        config(
            name="AdamW",
            args={"betas": [0.9, 0.99], "eps": 1e-15},
            params={"geometry.0": {"lr": 0.1}, "background": {"lr": 0.2}, "scale": {"lr": 0.3}},
        ),
        scene,
    )
    assert isinstance(optimizer, torch.optim.AdamW)
    groups = [(g["name"], g["lr"], len(g["params"])) for g in optimizer.param_groups]
    assert groups == [("geometry.0", 0.1, 2), ("background", 0.2, 2), ("scale", 0.3, 1)]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    everything = parse_optimizer(config(name="SGD", args={"lr": 0.1}), scene)
    assert sum(len(g["params"]) for g in everything.param_groups) == 7


def test_weights_of_two_groups_are_one_line():
    groups = {"geometry": {"lr": 0.1}, "geometry.0": {"lr": 0.2}}
    with pytest.raises(UserError, match="optimizer.params.geometry.0: has weights that the group geometry has too"):
        parse_optimizer(config(name="Adam", params=groups), Scene())


def test_a_missing_optimizer_is_one_line_where_a_guidance_trains_too():
    scene = Scene()
    scene.guidance = nn.Linear(1, 1)
    scene.guidance.optimizer_group = {"lr": 1e-4}
    with pytest.raises(UserError, match="system.optimizer.name: expected the name of a class, got null"):
        parse_optimizer(with_guidance_groups(config(), scene), scene)


def test_bad_optimizers():
    with pytest.raises(UserError, match="optimizer.params.geometri: Scene has no 'geometri'; nearest: geometry"):
        parse_optimizer(config(name="Adam", params={"geometri": {"lr": 1}}), Scene())
    with pytest.raises(UserError, match="no trainable parameters"):
        parse_optimizer(config(name="Adam"), nn.Identity())
    with pytest.raises(UserError, match="unknown optimizer 'Adm'; nearest: Adam"):
        parse_optimizer(config(name="Adm"), Scene())


def rates(scheduler_config, steps, lr=1.0):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    parsed = parse_scheduler(scheduler_config, optimizer)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        parsed["scheduler"].step()
    return parsed["interval"], values


def test_schedules():
    interval, values = rates(config(name="ExponentialLR", interval="step", args={"gamma": 0.5}), 3)
    assert interval == "step" and values == [1.0, 0.5, 0.25]
    sequential = config(
        name="SequentialLR",
        interval="step",
        milestones=[2],
        schedulers=[
            {"name": "ConstantLR", "args": {"factor": 0.1, "total_iters": 2}},
            {"name": "ExponentialLR", "args": {"gamma": 0.5}},
        ],
    )
    assert rates(sequential, 4)[1] == pytest.approx([0.1, 0.1, 1.0, 0.5])
    chained = config(
        name="ChainedScheduler",
        schedulers=[
            {"name": "ConstantLR", "args": {"factor": 0.5, "total_iters": 1}},
            {"name": "ExponentialLR", "args": {"gamma": 0.5}},
        ],
    )
    assert rates(chained, 2) == ("epoch", pytest.approx([0.5, 0.5]))


def test_bad_schedules():
    with pytest.raises(UserError, match="scheduler.interval: expected 'epoch' or 'step', got 'day'"):
        rates(config(name="ExponentialLR", interval="day", args={"gamma": 0.5}), 1)
    with pytest.raises(UserError, match="system.scheduler.args.gamma: a value is required by ExponentialLR"):
        rates(config(name="ExponentialLR"), 1)
    with pytest.raises(UserError, match="takes a function"):
        rates(config(name="LambdaLR"), 1)


@pytest.mark.parametrize(
    "milestones, shown", [(["5"], r"\['5'\]"), ([1.5], r"\[1.5\]"), ([-1], r"\[-1\]"), ([3, 3], r"\[3, 3\]"), (2, "2")]
)
def test_milestones_are_steps_that_rise(milestones, shown):
    halves = [{"name": "StepLR", "args": {"step_size": 1}}] * 3
    sequential = config(name="SequentialLR", milestones=milestones, schedulers=halves)
    with pytest.raises(UserError, match=f"system.scheduler.milestones: expected whole numbers that rise.*{shown}"):
        rates(sequential, 1)


def test_milestones_of_a_text_are_refused():
    with pytest.raises(UserError, match=r"system.scheduler.args.milestones: expected .*, got \['5'\]"):
        rates(config(name="MultiStepLR", args={"milestones": ["5"]}), 1)


def test_one_cycle_lasts_as_long_as_the_run():
    cycle = config(name="OneCycleLR", interval="step", args={"max_lr": 0.1, "total_steps": 9})
    check_scheduler_lasts(cycle, 9)
    with pytest.raises(UserError, match="system.scheduler.args.total_steps: expected at least trainer.max_steps, 10"):
        check_scheduler_lasts(cycle, 10)


def test_an_optimizer_of_matrices_alone_is_one_line():
    with pytest.raises(UserError, match="system.optimizer: Muon: "):
        parse_optimizer(config(name="Muon"), nn.Linear(2, 2))


def adan_by_hand(gradients, lr, betas, eps, decay):
    """Algorithm 1 of the paper on one number, written out."""
    b1, b2, b3 = betas
    x = m = v = n = 0.0
    previous = gradients[0]
    for k, g in enumerate(gradients, 1):
        difference = g - previous
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * difference
        n = b3 * n + (1 - b3) * (g + b2 * difference) ** 2
        scale = lr / (math.sqrt(n / (1 - b3**k)) + eps)
        x = (x - scale * (m / (1 - b1**k) + b2 * v / (1 - b2**k))) / (1 + lr * decay)
        previous = g
    return x


def test_adan_is_the_papers():
    gradients = [1.0, -0.5, 2.0, 0.25]
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Adan([parameter], lr=0.1, betas=(0.9, 0.8, 0.7), eps=1e-8, weight_decay=0.02)
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    expected = adan_by_hand(gradients, 0.1, (0.9, 0.8, 0.7), 1e-8, 0.02)
    assert float(parameter.detach()) == pytest.approx(expected, rel=1e-12)


def test_adan_minimizes_and_leaves_out_what_has_no_gradient():
    x, idle = nn.Parameter(torch.tensor([3.0, -2.0])), nn.Parameter(torch.ones(1))
    optimizer = parse_optimizer(
        config(name="Adan", args={"lr": 0.05, "max_grad_norm": 5.0}), nn.ParameterList([x, idle])
    )
    for _ in range(300):
        optimizer.zero_grad()
        (x**2).sum().backward()
        optimizer.step()
    assert x.detach().abs().max() < 0.2
    assert float(idle.detach()) == 1.0 and idle not in optimizer.state
    with pytest.raises(ValueError, match="three betas"):
        Adan([x], betas=(0.9, 0.9))


def test_adan_clips_nothing_in_a_step_that_was_left_out():
    x = nn.Parameter(torch.ones(2))
    Adan([x], max_grad_norm=1.0).step()
    assert x.tolist() == [1.0, 1.0]


def test_non_finite_gradients_are_found():
    params = [nn.Parameter(torch.zeros(3)) for _ in range(4)]
    optimizer = torch.optim.SGD([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)
    assert non_finite_gradients(optimizer) == []
    params[0].grad = torch.full((3,), 3e38)  # large, and finite
    params[2].grad = torch.tensor([0.0, float("nan"), 0.0])
    params[3].grad = torch.tensor([0.0, 0.0, -float("inf")])
    assert non_finite_gradients(optimizer) == [2, 3]


def test_orientation_loss():
    """One sample faces the camera, one away from it: only the second counts."""
    directions = torch.tensor([[0.0, 0, 1], [0, 0, 1]])
    normal = torch.tensor([[0.0, 0, -1], [0, 0.6, 0.8]], requires_grad=True)
    weights = torch.tensor([[0.5], [0.25]], requires_grad=True)
    loss = losses.orientation_loss(weights, normal, directions, torch.tensor(2))
    assert float(loss.detach()) == pytest.approx(0.25 * 0.64 / 2)
    loss.backward()
    assert weights.grad is None and (normal.grad[0] == 0).all()


def test_opacity_losses():
    opacity = torch.tensor([0.0, 0.5, 1.0])
    sparsity = (math.sqrt(0.01) + math.sqrt(0.26) + math.sqrt(1.01)) / 3
    assert float(losses.sparsity_loss(opacity)) == pytest.approx(sparsity)
    edge = -(0.001 * math.log(0.001) + 0.999 * math.log(0.999))
    opaque = (2 * edge + math.log(2)) / 3
    assert float(losses.opaque_loss(opacity)) == pytest.approx(opaque, rel=1e-4)


def test_z_variance_loss():
    out = {"opacity": torch.tensor([[0.9], [0.1]]), "z_variance": torch.tensor([[2.0], [50.0]])}
    assert float(losses.z_variance_loss(**out)) == 2.0
    out["opacity"] = torch.zeros(2, 1)
    assert float(losses.z_variance_loss(**out)) == 0.0


class Weighing(ScoreDistillationSystem):
    """A system without parts; what it logs is kept."""

    def configure(self):
        self.logged = {}

    def log(self, name, value, **options):
        self.logged[name] = value


def test_a_step_is_the_weighted_sum_of_its_losses():
    system = Weighing({"loss": {"lambda_asd": 1.0, "lambda_sparsity": 10.0, "lambda_sds": 5.0}})
    losses = {"loss_asd": torch.tensor(2.0), "loss_sparsity": torch.tensor(3.0)}
    assert float(system.weighted_sum(losses)["loss"]) == 32
    assert system.logged["train/loss_sparsity"] == 3 and system.logged["train_params/lambda_sds"] == 5
    with pytest.raises(UserError, match="system.loss.lambda_sparsity"):
        Weighing({"loss": {"lambda_asd": 1.0}}).weighted_sum(losses)


def test_a_loss_of_weight_zero_may_be_nan():
    """It is not part of the sum at all."""
    system = Weighing({"loss": {"lambda_a": 1.0, "lambda_b": 0.0}})
    assert float(system.weighted_sum({"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(math.nan)})["loss"]) == 1


def square() -> Mesh:
    corners = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    return Mesh(corners, torch.tensor([[0, 1, 2], [2, 1, 3]]))


class RefiningMesh(Magic3D):
    """Its second stage, of a square that covers half of the picture and that no picture moves."""

    def configure(self):
        self.logged = {}

    def log(self, name, value, **options):
        self.logged[name] = value

    def forward(self, batch):
        return {"mesh": square(), "opacity": batch["opacity"], "comp_rgb": torch.zeros(1, 2, 2, 3)}

    def guide(self, images, batch, **options):
        return {"loss_asd": torch.tensor(0.0)}


def test_a_mesh_is_worn_off_where_sparsity_has_a_weight():
    """The second stage of Magic3D has a silhouette but no density: its opacity is what the loss looks at."""
    weights = {"lambda_asd": 1.0, "lambda_normal_consistency": 0.0}
    opacity = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 2, 2, 1).requires_grad_()
    for weight, wanted in ((10.0, 10 * (math.sqrt(0.01) + math.sqrt(1.01)) / 2), (0.0, 0.0)):
        system = RefiningMesh({"refinement": True, "loss": {**weights, "lambda_sparsity": weight}})
        loss = system.training_step({"opacity": opacity}, 0)["loss"]
        assert loss.item() == pytest.approx(wanted)
        assert ("train/loss_sparsity" in system.logged) == (weight > 0)


class RefiningPicture(ImageReferenceSystem):
    def configure(self):
        pass


@pytest.mark.parametrize("weight", [10.0, 0.0])
def test_a_mesh_from_a_picture_is_worn_off_at_random_cameras_alone(weight):
    system = RefiningPicture({"refinement": True, "loss": {"lambda_sparsity": weight}})
    out = {"mesh": square(), "opacity": torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)}
    assert "sparsity" not in system.regularizers(out, of_picture=True)
    losses = system.regularizers(out, of_picture=False)
    if weight > 0:
        assert losses["sparsity"].item() == pytest.approx((math.sqrt(0.01) + math.sqrt(1.01)) / 2)
    else:
        assert "sparsity" not in losses
