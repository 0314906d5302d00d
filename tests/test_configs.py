"""Every config that is shipped can be run: --dry-run for all, and threestudio's methods train, hand over and export.

With tiny real models in the big ones' place, at the smallest sizes (`config_runs.py`).
"""

import pytest
import torch
from omegaconf import OmegaConf

import threestudio
from launch import main
from tests.config_runs import CONFIGS, METHODS, ROOT, small_overrides, tiny_overrides
from threestudio.systems.loss_weights import (
    GuidanceLosses,
    LossWeights,
    checked_loss,
    returned_losses,
    with_distillation_weight,
)
from threestudio.utils.config import load_config

NAMES = [str(path.relative_to(ROOT / "configs")) for path in CONFIGS]


def test_there_are_configs():
    assert {"asd-3dconv.yaml", *(f"{name}.yaml" for name in METHODS)} <= set(NAMES)


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_dry_run(path, runs, models, tmp_path, capsys):
    output = tmp_path / "outputs"
    # Those in a folder of their own change the one of their name.
    files = [path] if path.parent.name == "configs" else [ROOT / "configs" / path.name, path]
    config = OmegaConf.merge(*map(OmegaConf.load, files))
    given = [*small_overrides(config), *models(config)]
    if path.stem in METHODS:
        given += [*tiny_overrides(config), *runs.start(path.stem)]
    capsys.readouterr()
    configs = [word for file in files for word in ("--config", str(file))]
    assert main([*configs, "--dry-run", f"exp_root_dir={output}", *given]) == 0, capsys.readouterr().err
    resolved = OmegaConf.create(capsys.readouterr().out)
    assert resolved.name == config.name
    assert not output.exists()


@pytest.mark.parametrize("name", METHODS)
def test_method_trains_and_exports(name, runs):
    trial = runs.trial(name)
    checkpoint = trial / "ckpts" / "last.ckpt"
    loaded = torch.load(checkpoint, weights_only=True)
    assert loaded["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in loaded["state_dict"].values() if value.is_floating_point())
    assert (trial / "save" / "it2-test.mp4").stat().st_size > 0
    assert runs.launch(name, "--export", f"resume={checkpoint}") == 0
    assert (trial / "save" / "it2-export" / "model.obj").stat().st_size > 100


@pytest.mark.slow
def test_fantasia3d_fits_its_first_shape(runs):
    fit = [
        "system.geometry.shape_init=sphere",
        "system.geometry.shape_init_params=0.5",
        "system.geometry.sdf_bias=0.0",
        "tag=fit",
    ]
    assert runs.launch("fantasia3d", "--train", *fit, "trainer.max_steps=1") == 0
    checkpoint = runs.root / "fantasia3d" / "fit" / "ckpts" / "last.ckpt"
    assert runs.launch("fantasia3d", "--export", f"resume={checkpoint}", *fit) == 0
    lines = (checkpoint.parents[1] / "save" / "it1-export" / "model.obj").read_text().splitlines()
    vertices = torch.tensor([[float(x) for x in line.split()[1:4]] for line in lines if line.startswith("v ")])
    assert (vertices.norm(dim=-1) - 0.5).abs().mean() < 0.1


def test_the_guidance_of_prolificdreamer_trains_and_is_saved(runs):
    state = torch.load(runs.trial("prolificdreamer") / "ckpts" / "last.ckpt", weights_only=True)
    assert any(key.startswith("guidance.") for key in state["state_dict"])
    names = [group["name"] for group in state["optimizer_states"][0]["param_groups"]]
    assert "guidance" in names
    moments = state["optimizer_states"][0]["state"]
    indices = [
        i
        for group in state["optimizer_states"][0]["param_groups"]
        if group["name"] == "guidance"
        for i in group["params"]
    ]
    assert any(moments[i]["exp_avg"].abs().max() > 0 for i in indices if i in moments)


def test_a_later_stage_starts_from_the_surface_of_the_one_before(runs):
    """Magic3D's mesh takes over texture and shape; two steps move it little."""

    def surface(name: str) -> torch.Tensor:
        lines = (runs.trial(name) / "save" / "it2-export" / "model.obj").read_text().splitlines()
        return torch.tensor([[float(x) for x in line.split()[1:4]] for line in lines if line.startswith("v ")])

    for name in ("magic3d-coarse-sd", "magic3d-refine-sd"):
        assert runs.launch(name, "--export", f"resume={runs.trial(name)}/ckpts/last.ckpt") == 0
    coarse, fine = surface("magic3d-coarse-sd"), surface("magic3d-refine-sd")
    extent = (coarse.amax(0) - coarse.amin(0)).max()
    assert ((coarse.amax(0) - fine.amax(0)).abs() < 0.3 * extent).all()
    assert ((coarse.amin(0) - fine.amin(0)).abs() < 0.3 * extent).all()


WRONG = [
    ("dreamfusion-sd", "system.loss.lambda_orientt=1",
     "system.loss.lambda_orientt: no loss has this weight; nearest: lambda_orient"),
    ("dreamfusion-sd", "system.guidance_type=turboprop-vsd-guidance",
     "system.loss.lambda_vsd: a weight of the loss of turboprop-vsd-guidance is required"),
    ("dreamfusion-sd", "system.guidance.method=csd",
     "system.loss.lambda_csd: a weight of the loss of stable-diffusion-guidance is required"),
    ("dreamfusion-sd", "system.guidance.use_img_loss=true",
     "system.loss.lambda_sds_img: a weight of the loss of stable-diffusion-guidance is required"),
    ("asd-nerf", "system.guidance.method=asdd",
     "method: expected one of sds, csd, normalized_csd, asd, sjc, got 'asdd'"),
    ("asd-nerf", "system.guidance.plus_ratio=[0,0.1,0.2,9]",
     "system.guidance.plus_ratio: expected float, got [0, 0.1, 0.2, 9] (list); this key takes no schedule"),
    ("asd-nerf", "system.guidance.n_view=[1,2,9]",
     "system.guidance.n_view: expected int, got [1, 2, 9] (list); this key takes no schedule"),
    ("asd-nerf", "system.guidance.plus_min_step_percent=[0,0.1,0.2,9]",
     "system.guidance.plus_min_step_percent: expected float | None, got [0, 0.1, 0.2, 9] (list)"),
    ("asd-nerf", "system.guidance.grad_clip=[0,0.1,0.2,9,1]",
     "system.guidance.grad_clip: expected a number, or a schedule of 3 numbers"),
    ("asd-3dconv", "system.min_coverage=[0,0.1,0.2,9]",
     "system.min_coverage: expected float, got [0, 0.1, 0.2, 9] (list); this key takes no schedule"),
    ("asd-3dconv", "system.validation_size=0", "system.validation_size: expected at least 1, got 0"),
    ("asd-3dconv", "system.sheet_views=0", "system.sheet_views: expected at least 1, got 0"),
    ("asd-3dconv", "system.renderer.near_plane=[0,0.1,0.2,9]",
     "renderer.near_plane: expected float, got [0, 0.1, 0.2, 9] (list); this key takes no schedule"),
    ("asd-gaussians", "system.geometry.opacity_init=[0,0.1,0.2,9]",
     "geometry.opacity_init: expected float, got [0, 0.1, 0.2, 9] (list); this key takes no schedule"),
    ("dreamfusion-sd", "system.renderer.radius=[0,0.1,0.2,9]",
     "renderer.radius: expected float, got [0, 0.1, 0.2, 9] (list); this key takes no schedule"),
    ("asd-nerf", "system.loss.lambda_distilation=1",
     "system.loss.lambda_distilation: no loss has this weight; nearest: lambda_distillation"),
    ("dreamfusion-if", "system.loss.lambda_sparcity=1", "nearest: lambda_sparsity"),
    ("magic3d-coarse-sd", "system.loss.lambda_normal_consistensy=1", "nearest: lambda_normal_consistency"),
    ("textmesh-if", "system.loss.lambda_ikonal=1", "nearest: lambda_eikonal"),
    ("prolificdreamer", "system.loss.lambda_lorra=1", "nearest: lambda_lora"),
    ("prolificdreamer", "system.stage=corse", "system.stage: expected one of coarse, geometry, texture, got 'corse'"),
    ("fantasia3d", "system.loss.lambda_laplacian=1", "nearest: lambda_laplacian_smoothness"),
    ("latentnerf", "system.guide_shape=none.obj", "system.guide_shape: system.loss.lambda_shape weighs it"),
    ("sjc", "system.loss.emptines_scale=1", "nearest: emptiness_scale"),
    ("sjc", "system.loss.center_ratio=1", "center_ratio: expected a number above 0 and below 1, got 1 (int)"),
    ("sjc", "system.loss.emptiness_scale=[0,1,9,100]", "emptiness_scale: expected a number from 0, got [0,"),
    ("sdi", "system.convexity_res=1", "system.convexity_res: expected >= 2, got 1"),
    ("sdi", "system.loss.lambda_convexe=1", "nearest: lambda_convex"),
    ("asd-3dconv", "system.loss.lambda_coverege=1", "nearest: lambda_coverage"),
    ("magic123-coarse-sd", "system.guidance_3d.guidance_scal=1", "unknown key 'system.guidance_3d.guidance_scal'"),
    ("magic123-coarse-sd", "system.loss.lambda_3d_sds_imgg=1", "nearest: lambda_3d_sds_img"),
    ("zero123", "system.loss.lambda_depht=1", "nearest: lambda_depth"),
    ("zero123", "system.freq.ref_only_steps=x", "system.freq.ref_only_steps: expected a whole number from 0, got 'x'"),
    ("zero123", "system.freq.guidance_eval=-1", "system.freq.guidance_eval: expected a whole number from 0, got -1"),
]  # fmt: skip


@pytest.mark.parametrize("name, override, message", WRONG, ids=[f"{name} {override}" for name, override, _ in WRONG])
def test_a_wrong_key_is_one_line_before_any_work(name, override, message, runs, models, tmp_path, capsys):
    path = ROOT / "configs" / f"{name}.yaml"
    config = OmegaConf.load(path)
    tiny = tiny_overrides(config) if name in METHODS else small_overrides(config)
    arguments = [f"exp_root_dir={tmp_path}", *models(config), *tiny, override]
    assert main(["--config", str(path), "--train", *arguments]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in error
    assert list(tmp_path.iterdir()) == []


METHOD_NAMES = ("asd", "sds", "csd", "normalized-csd", "vsd")
OF_ONE_KEY = [f"asd-{kind}" for kind in ("nerf", "sdf", "dmtet", "gaussians", "3dconv")]


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("name", OF_ONE_KEY)
def test_asd_configs_take_any_method_by_one_key(name, method):
    """What every step of the method returns has a weight, known from the config alone."""
    config = load_config(
        str(ROOT / "configs" / f"{name}.yaml"), cli_args=[f"system.guidance_type=turboprop-{method}-guidance"]
    )
    guidance = threestudio.find(config.system.guidance_type)
    losses = returned_losses(guidance, config.system.guidance)
    assert losses[0] == method.replace("-", "_")
    weights = with_distillation_weight(config.system.loss, GuidanceLosses(config.system.guidance_type, losses))
    assert all(weights[f"lambda_{loss}"] == 1.0 for loss in losses)
    assert "lambda_distillation" not in weights


def test_each_guidance_has_such_a_weight_of_its_own():
    guidances = [GuidanceLosses("a", ("asd",)), GuidanceLosses("b", ("vsd", "lora"), prefix="3d_")]
    loss = {"lambda_distillation": 2.0, "lambda_3d_distillation": 0.3, "lambda_3d_lora": 1.0}
    assert checked_loss(loss, LossWeights(), guidances) == {
        "lambda_asd": 2.0, "lambda_3d_vsd": 0.3, "lambda_3d_lora": 1.0,
    }  # fmt: skip


def test_a_weight_of_the_methods_own_name_goes_before_lambda_distillation():
    given = {"lambda_sds": 0.5, "lambda_distillation": 2.0, "lambda_sparsity": 1.0}
    weights = with_distillation_weight(given, GuidanceLosses("any", ("sds",)))
    assert weights == {"lambda_sds": 0.5, "lambda_sparsity": 1.0}


def test_a_guidance_that_does_not_say_its_losses_has_no_distillation_weight():
    message = "system.loss.lambda_distillation: foreign-guidance does not say which loss is its own"
    with pytest.raises(ValueError, match=message):
        checked_loss({"lambda_distillation": 1.0}, LossWeights(), [GuidanceLosses("foreign-guidance", None)])


def test_weights_that_nobody_reads_are_said(caplog):
    """A config may weigh losses of several guidances; those of others are let through, but not silently."""
    guidances = [GuidanceLosses("turboprop-sds-guidance", ("sds",))]
    own, weights = LossWeights(("lambda_sparsity",), ("lambda_opaque",)), {"lambda_sds": 1.0, "lambda_sparsity": 0.0}
    with caplog.at_level("INFO"):
        assert checked_loss({**weights, "lambda_vsd": 0.0}, own, guidances)["lambda_sds"] == 1.0
        checked_loss({"lambda_distillation": 1.0, "lambda_sparsity": 0.0, "lambda_lora": 1.0}, own, guidances)
        assert not caplog.messages
        checked_loss({**weights, "lambda_vsd": 2.0, "lambda_sd_img": [0, 0.0, 1.0, 9]}, own, guidances)
    assert caplog.messages == ["system.loss: not read are lambda_vsd, lambda_sd_img; the guidance has lambda_sds"]
    with pytest.raises(ValueError, match="system.loss.lambda_sdss: no loss has this weight; nearest: lambda_sds"):
        checked_loss({**weights, "lambda_sdss": 1.0}, own, guidances)


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_files_that_configs_name_are_there(path):
    """Prompt libraries of this project; assets are named by their folder."""
    config = OmegaConf.load(path)
    library = OmegaConf.select(config, "data.prompt_library", throw_on_missing=False)
    if library and library.endswith(".json"):
        assert (ROOT / library).is_file()
    text = path.read_text()
    assert "\t" not in text and text.endswith("\n")
