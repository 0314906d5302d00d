import pytest
import torch
from turboprop.teachers import LatentDiffusionTeacher, TextCondition
from turboprop.teachers.loading import LoadingOptions
from turboprop.teachers.noise_schedule import signal_and_noise_level

from tests.tiny_stable_diffusion import write_tiny_stable_diffusion


@pytest.fixture(scope="module")
def teacher(tiny_sd_folder):
    return LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder))


def question(batch_size: int = 3) -> tuple[torch.Tensor, torch.Tensor, TextCondition]:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(batch_size, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([10, 500, 990])[:batch_size]
    return noisy, timesteps, TextCondition(torch.randn(batch_size, 12, 16, generator=generator))


def test_stable_diffusion_pipeline_opens_the_same_folder_and_agrees(teacher, tiny_sd_folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd_folder)
    noisy, timesteps, condition = question()
    theirs = pipeline.unet(noisy, timesteps, encoder_hidden_states=condition.embeddings).sample
    torch.testing.assert_close(teacher.predict_noise(noisy, timesteps, condition), theirs)
    latents = noisy * 0.1
    theirs = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(teacher.decode(latents), theirs)
    torch.testing.assert_close(teacher.alphas_cumprod, pipeline.scheduler.alphas_cumprod)


def test_sizes_come_from_the_folder(teacher):
    assert (teacher.image_size, teacher.latent_size, teacher.latent_channels, teacher.num_timesteps) == (
        16,
        8,
        4,
        1000,
    )
    assert teacher.encode(torch.zeros(2, 3, 16, 16)).shape == (2, 4, 8, 8)


def test_teacher_is_frozen_and_answers_without_a_graph(teacher):
    noisy, timesteps, condition = question()
    answer = teacher.predict_noise(noisy.requires_grad_(), timesteps, condition)
    assert not answer.requires_grad
    assert not any(p.requires_grad for module in (teacher.unet, teacher.vae) for p in module.parameters())
    assert not teacher.unet.training and not teacher.vae.training


def test_v_prediction_is_answered_as_epsilon(teacher, tiny_sd_v_folder):
    v_teacher = LatentDiffusionTeacher.from_pretrained(str(tiny_sd_v_folder))
    noisy, timesteps, condition = question()
    network_output = teacher.predict_noise(noisy, timesteps, condition)  # the same weights, read as epsilon
    signal, level = signal_and_noise_level(teacher.alphas_cumprod, timesteps)
    torch.testing.assert_close(
        v_teacher.predict_noise(noisy, timesteps, condition), signal * network_output + level * noisy
    )


def test_a_batch_is_its_samples(teacher):
    noisy, timesteps, condition = question()
    together = teacher.predict_noise(noisy, timesteps, condition)
    for index in range(3):
        one = slice(index, index + 1)
        alone = teacher.predict_noise(noisy[one], timesteps[one], TextCondition(condition.embeddings[one]))
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)


def test_encode_samples_the_posterior(teacher):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    posterior = teacher.vae.encode(images).latent_dist
    scale = teacher.vae.config.scaling_factor
    zero = torch.zeros_like(posterior.mean)
    torch.testing.assert_close(teacher.encode(images, zero), posterior.mean * scale)
    torch.testing.assert_close(teacher.encode(images, zero + 1), (posterior.mean + posterior.std) * scale)
    torch.manual_seed(5)
    first = teacher.encode(images)
    torch.manual_seed(5)
    assert torch.equal(first, teacher.encode(images))
    assert not torch.equal(first, teacher.encode(images))


def test_gradient_through_encode_by_finite_differences(tiny_sd_folder):
    teacher = LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder))
    teacher.vae.double()
    generator = torch.Generator().manual_seed(2)
    images = (torch.rand(1, 3, 16, 16, generator=generator, dtype=torch.float64) - 0.5).requires_grad_()
    noise = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    probe = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    direction = torch.randn(1, 3, 16, 16, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((teacher.encode(images, noise) * probe).sum(), images)
    step = 1e-5
    with torch.no_grad():
        ahead = (teacher.encode(images + step * direction, noise) * probe).sum()
        behind = (teacher.encode(images - step * direction, noise) * probe).sum()
    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)


def test_half_precision_files_are_computed_in_float32_on_a_cpu(tmp_path, teacher):
    folder = write_tiny_stable_diffusion(tmp_path / "half", dtype=torch.float16)
    half = LatentDiffusionTeacher.from_pretrained(str(folder), options=LoadingOptions(half_precision_weights=True))
    assert half.unet.dtype == half.vae.dtype == torch.float32
    noisy, timesteps, condition = question()
    expected = teacher.predict_noise(noisy, timesteps, condition)
    torch.testing.assert_close(half.predict_noise(noisy, timesteps, condition), expected, rtol=1e-2, atol=1e-2)


def test_the_fp16_variant_is_taken_where_it_is_the_only_one(tmp_path, teacher, tiny_sd_folder):
    import shutil

    folder = tmp_path / "variant"
    shutil.copytree(tiny_sd_folder, folder)
    for part in ("unet", "vae"):
        path = folder / part / "diffusion_pytorch_model.safetensors"
        path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    noisy, timesteps, condition = question()
    variant = LatentDiffusionTeacher.from_pretrained(str(folder))
    assert torch.equal(
        variant.predict_noise(noisy, timesteps, condition), teacher.predict_noise(noisy, timesteps, condition)
    )


def test_options_change_no_number(teacher, tiny_sd_folder):
    options = LoadingOptions(enable_attention_slicing=True, enable_channels_last_format=True)
    other = LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder), options=options)
    noisy, timesteps, condition = question()
    expected = teacher.predict_noise(noisy, timesteps, condition)
    torch.testing.assert_close(other.predict_noise(noisy, timesteps, condition), expected, rtol=1e-4, atol=1e-5)


def test_a_unet_that_does_not_fit_the_vae_is_refused(teacher):
    from diffusers import UNet2DConditionModel

    config = {**teacher.unet.config, "in_channels": 9}
    with pytest.raises(ValueError, match="the unet takes 9 channels, the vae's latents have 4"):
        LatentDiffusionTeacher(UNet2DConditionModel.from_config(config), teacher.vae, teacher.alphas_cumprod, "epsilon")


def test_weights_of_another_shape_are_refused(tmp_path, tiny_sd_folder):
    import json
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(tiny_sd_folder, folder)
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, "cross_attention_dim": 32}))
    with pytest.raises(ValueError, match="cannot load unet of .*other"):
        LatentDiffusionTeacher.from_pretrained(str(folder))
