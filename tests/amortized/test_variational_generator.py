"""VSD in the multi-prompt system: one generator, and one low-rank teacher of its renders for all prompts."""

from pathlib import Path

import pytest
import torch
from turboprop.teachers.contract import Cameras

import threestudio
from tests.main_job import TRIAL, column, model, state_of
from tests.saved_states import assert_same

VSD = ["system.guidance_type=turboprop-vsd-guidance", "trainer.val_check_interval=null", "trainer.limit_test_batches=0"]
SETS = ["data.view_sets=true", "data.n_view=4", "data.batch_size=1", "system.guidance.n_view=4"]


def trained(trial) -> tuple[dict, dict]:
    """The weights that a run has moved from zero, the generator's and the adapters'; its groups by name."""
    state = state_of(trial / "ckpts/last.ckpt")
    (optimizer,) = state["optimizer_states"]
    return state["state_dict"], {group["name"]: group for group in optimizer["param_groups"]}


@pytest.mark.parametrize("sets", [False, True])
def test_one_key_trains_the_generator_and_the_adapters(launch_job, tiny_sd_folder, tiny_mv_folder, sets):
    given = [*VSD, *(SETS if sets else []), model(tiny_mv_folder if sets else tiny_sd_folder)]
    assert launch_job("--train", *given) == 0
    weights, groups = trained(TRIAL)
    ours = {key: value for key, value in weights.items() if key.startswith("guidance.")}
    moved = [value for key, value in ours.items() if key.endswith("lora_B")]
    assert moved and all(value.abs().max() > 0 for value in moved)
    assert weights["geometry.heads.sdf.2.weight"].abs().max() > 0
    assert any("camera_embedding" in key for key in ours) != sets  # a multi-view network has its own
    # before the schedule, which is the whole run's
    assert (groups["guidance"]["initial_lr"], groups["geometry"]["initial_lr"]) == (1e-4, 2e-3)
    for name in ("train/loss_vsd", "train/loss_lora"):
        values = column(TRIAL, name)
        assert len(values) == 3 and all(value > 0 for value in values)


def test_stopped_and_resumed_is_the_same_and_exports(launch_job):
    given = VSD
    assert launch_job("--train", *given, "exp_root_dir=whole") == 0
    whole, part = (Path(root, *TRIAL.parts[1:]) for root in ("whole", "part"))
    first = whole / "ckpts/epoch=0-step=1.ckpt"
    assert launch_job("--train", *given, "exp_root_dir=part", f"resume={first}") == 0
    assert_same(state_of(whole / "ckpts/last.ckpt"), state_of(part / "ckpts/last.ckpt"))
    assert launch_job("--export", *VSD[:1], f"resume={whole}/ckpts/last.ckpt") == 0


def test_the_adapters_are_told_each_renders_prompt_and_camera(tiny_sd_folder, text_cache):
    """Two prompts, three cameras each: the answer about a render is that of its own prompt and camera alone."""
    processor = threestudio.find("turboprop-multi-prompt-processor")(
        {"pretrained_model_name_or_path": str(tiny_sd_folder), "prompts": ["a red chair", "a blue car"]}
    )
    torch.manual_seed(0)
    guidance = threestudio.find("turboprop-vsd-guidance")({"pretrained_model_name_or_path": str(tiny_sd_folder)})
    with torch.no_grad():
        for parameter in guidance.parameters():
            parameter.normal_(std=0.3)
    torch.manual_seed(1)
    c2w, noisy, timesteps = torch.randn(6, 4, 4), torch.randn(6, 4, 8, 8), torch.randint(0, 1000, (6,))
    views = Cameras(torch.zeros(6), torch.arange(6) * 60.0, torch.ones(6), c2w)

    def answer(prompts: list[str], rows: slice) -> torch.Tensor:
        chosen = Cameras(views.elevation[rows], views.azimuth[rows], views.distance[rows], c2w[rows])
        asked = guidance.render_conditions(processor(prompts), chosen, c2w[rows]).positive
        return guidance.lora.predict_noise(noisy[rows], timesteps[rows], asked)

    together = answer(["a blue car", "a red chair"], slice(0, 6))
    for row in range(6):
        own, other = ("a blue car", "a red chair") if row < 3 else ("a red chair", "a blue car")
        torch.testing.assert_close(together[row : row + 1], answer([own], slice(row, row + 1)), rtol=1e-4, atol=1e-5)
        assert (together[row : row + 1] - answer([other], slice(row, row + 1))).abs().max() > 1e-3
    c2w[0] += 1.0
    assert (answer(["a blue car", "a red chair"], slice(0, 6)) - together).abs().amax((1, 2, 3)).gt(1e-3).tolist() == [
        True, False, False, False, False, False,
    ]  # fmt: skip
