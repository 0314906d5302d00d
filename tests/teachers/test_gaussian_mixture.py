import pytest
import torch
from turboprop.teachers import GaussianMixtureTeacher, TextCondition
from turboprop.teachers.noise_schedule import signal_and_noise_level

TIMESTEPS = torch.tensor([1, 20, 300, 700, 999])


def mixture() -> GaussianMixtureTeacher:
    generator = torch.Generator().manual_seed(1)
    return GaussianMixtureTeacher(torch.randn(3, 2, 2, 2, generator=generator, dtype=torch.float64), [0.5, 0.1, 0.8])


def weights(batch_size: int) -> TextCondition:
    generator = torch.Generator().manual_seed(2)
    return TextCondition(torch.softmax(torch.randn(batch_size, 1, 3, generator=generator, dtype=torch.float64), -1))


def test_noise_is_the_gradient_of_the_log_density():
    teacher, condition = mixture(), weights(5)
    noisy = torch.randn(5, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    (score,) = torch.autograd.grad(teacher.log_density(noisy, TIMESTEPS, condition).sum(), noisy)
    _, level = signal_and_noise_level(teacher.alphas_cumprod, TIMESTEPS)
    torch.testing.assert_close(teacher.predict_noise(noisy, TIMESTEPS, condition), -level * score)


def test_density_integrates_to_one():
    teacher = GaussianMixtureTeacher(torch.tensor([[[[-1.0]]], [[[2.0]]]], dtype=torch.float64), [0.3, 0.5])
    line = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    condition = TextCondition(torch.tensor([[[0.3, 0.7]]], dtype=torch.float64).expand(len(line), -1, -1))
    for timestep in (1, 500, 999):
        log_density = teacher.log_density(line.view(-1, 1, 1, 1), torch.full((len(line),), timestep), condition)
        assert torch.trapezoid(log_density.exp(), line).item() == pytest.approx(1.0, abs=1e-6)


def test_a_point_mass_predicts_the_noise_that_was_added():
    teacher = GaussianMixtureTeacher(torch.ones(1, 2, 2, 2, dtype=torch.float64), [0.0])
    noise = torch.randn(5, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    noisy = teacher.add_noise(torch.ones(5, 2, 2, 2, dtype=torch.float64), noise, TIMESTEPS)
    only = TextCondition(torch.ones(5, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(teacher.predict_noise(noisy, TIMESTEPS, only), noise)


def test_latents_are_the_images():
    teacher, images = mixture(), torch.rand(2, 2, 2, 2, dtype=torch.float64)
    assert teacher.image_size == teacher.latent_size == 2
    assert torch.equal(teacher.decode(teacher.encode(images)), images)


@pytest.mark.parametrize(
    ("means", "stds", "message"),
    [
        (torch.zeros(2, 3), [1, 1], r"means: expected shape \[K, C, S, S\], got \[2, 3\]"),
        (torch.zeros(2, 1, 2, 2), [1], r"stds: expected one number for each of 2 components, got \[1\]"),
        (torch.zeros(2, 1, 2, 2), [1, -1], "stds: expected numbers of at least 0"),
    ],
)
def test_bad_input(means, stds, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixtureTeacher(means, stds)
