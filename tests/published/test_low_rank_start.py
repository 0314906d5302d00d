"""Where VSD's adapters start: N(0, 1 / rank^2) down, zero up, as in diffusers' LoRA layers that threestudio used."""

import pytest
import torch
from turboprop.teachers import LatentDiffusionTeacher, LowRankTeacher
from turboprop.teachers.loading import Denoiser


@pytest.mark.parametrize("rank", [2, 8])
def test_adapters_start_from_one_over_rank(tiny_sd_folder, rank):
    teacher = LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder))
    torch.manual_seed(0)
    adapted = LowRankTeacher(Denoiser(teacher.unet, teacher.alphas_cumprod, teacher.prediction_type), teacher, rank)
    down = torch.cat([value.flatten() for name, value in adapted.adapters.items() if "lora_A" in name]).detach()
    up = torch.cat([value.flatten() for name, value in adapted.adapters.items() if "lora_B" in name])
    assert (up == 0).all() and len(down) > 500
    error = (1 / rank) / (2 * len(down)) ** 0.5  # of a standard deviation of so many
    assert down.std().item() == pytest.approx(1 / rank, abs=4 * error)
    assert down.mean().item() == pytest.approx(0, abs=4 * (1 / rank) / len(down) ** 0.5)
    kurtosis = ((down - down.mean()) ** 4).mean() / down.var() ** 2  # 3 of a normal, 1.8 of a uniform distribution
    assert kurtosis.item() == pytest.approx(3, abs=4 * (24 / len(down)) ** 0.5)
