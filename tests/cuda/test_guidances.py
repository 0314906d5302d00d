"""Every guidance takes pictures of a CUDA device, with a teacher in half precision, and gives a gradient there."""

import pytest
import torch

import threestudio

BATCH = 2
LATENT = {
    "turboprop-asd-guidance": {},
    "turboprop-sds-guidance": {},
    "turboprop-csd-guidance": {},
    "turboprop-vsd-guidance": {},
    "stable-diffusion-guidance": {},
    "stable-diffusion-vsd-guidance": {"pretrained_model_name_or_path_lora": None},
    "stable-diffusion-sdi-guidance": {},
    "stable-diffusion-asynchronous-score-distillation-guidance": {},
}
REGISTERED = sorted(name for name in LATENT)


def views(device: str) -> dict:
    c2w = torch.eye(4, device=device).repeat(BATCH, 1, 1)
    c2w[:, 2, 3] = 2.5
    angles = {"elevation": [0.0, 20.0], "azimuth": [10.0, 100.0], "camera_distances": [2.5, 2.5]}
    return {**{k: torch.tensor(v, device=device) for k, v in angles.items()}, "c2w": c2w, "mvp_mtx": c2w}


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("name", REGISTERED)
def test_a_gradient(name, perp_neg, on_cuda, tiny_sd_folder, text_cache):
    more = {key: str(tiny_sd_folder) for key in LATENT[name]}
    guidance = threestudio.find(name)({"pretrained_model_name_or_path": str(tiny_sd_folder), **more})
    model = {"pretrained_model_name_or_path": str(tiny_sd_folder), "prompt": "a red chair", "use_perp_neg": perp_neg}
    prompts = threestudio.find("stable-diffusion-prompt-processor")(model)()
    if isinstance(guidance, torch.nn.Module):
        guidance.to("cuda")
    rgb = torch.rand(BATCH, 16, 16, 3, device="cuda", requires_grad=True)
    out = guidance(rgb, prompts, **views("cuda"), rgb_as_latents=False)
    losses = [value for key, value in out.items() if key.startswith("loss_")]
    assert losses and all(loss.is_cuda for loss in losses)
    sum(losses).backward()
    assert rgb.grad.is_cuda and bool(torch.isfinite(rgb.grad).all()) and rgb.grad.abs().max().item() > 0


def test_deep_floyd(on_cuda, tiny_if_folder, text_cache):
    model = {"pretrained_model_name_or_path": str(tiny_if_folder)}
    guidance = threestudio.find("deep-floyd-guidance")(model)
    prompts = threestudio.find("deep-floyd-prompt-processor")({**model, "prompt": "a red chair"})()
    rgb = torch.rand(BATCH, 16, 16, 3, device="cuda", requires_grad=True)
    guidance(rgb, prompts, **views("cuda"), rgb_as_latents=False)["loss_sds"].backward()
    assert rgb.grad.is_cuda and bool(torch.isfinite(rgb.grad).all())


def test_half_precision_is_near_the_single_one(on_cuda, tiny_sd_folder):
    from turboprop.teachers import LatentDiffusionTeacher, TextCondition
    from turboprop.teachers.loading import LoadingOptions

    torch.manual_seed(0)
    noisy, timesteps, text = torch.randn(2, 4, 8, 8), torch.tensor([100, 600]), torch.randn(2, 12, 16)
    answers = []
    for device, half in (("cpu", False), ("cuda", True)):
        teacher = LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder), device, LoadingOptions(half))
        answers.append(teacher.predict_noise(noisy.to(device), timesteps.to(device), TextCondition(text.to(device))))
    single, half = answers
    assert half.is_cuda and half.dtype == torch.float32
    assert (half.cpu() - single).abs().max().item() < 0.02 * single.abs().max().item()
