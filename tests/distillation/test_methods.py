"""The methods against closed forms, with a teacher whose score is exact, and batches against their samples."""

import pytest
import torch
from turboprop.distillation import (
    METHODS,
    Conditions,
    Negatives,
    Query,
    asd_gradient,
    csd_gradient,
    sds_gradient,
    sjc_gradient,
)
from turboprop.distillation.methods import classifier_free, perp_neg
from turboprop.distillation.timesteps import sample_timesteps, shift_timesteps
from turboprop.distillation.weighting import weight
from turboprop.teachers import GaussianMixtureTeacher, LatentDiffusionTeacher, TextCondition
from turboprop.teachers.noise_schedule import signal_and_noise_level

DOUBLE = torch.float64


def two_modes(std: float = 0.3) -> GaussianMixtureTeacher:
    """Modes at +2 and -2 in each of the 2x1x1 dimensions."""
    means = torch.tensor([2.0, -2.0], dtype=DOUBLE).view(2, 1, 1, 1).expand(2, 2, 1, 1)
    return GaussianMixtureTeacher(means, [std, std])


def about(mode_weights: list[float], batch_size: int) -> TextCondition:
    return TextCondition(torch.tensor([[mode_weights]], dtype=DOUBLE).expand(batch_size, -1, -1))


def first_mode(batch_size: int) -> Conditions:
    """Asks for the first mode; unconditionally both are as likely."""
    return Conditions(about([1.0, 0.0], batch_size), about([0.5, 0.5], batch_size))


def draw(batch_size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """latents, timesteps, noise, shifted timesteps."""
    torch.manual_seed(seed)
    latents = torch.randn(batch_size, 2, 1, 1, dtype=DOUBLE)
    timesteps = torch.randint(20, 980, (batch_size,))
    return latents, timesteps, torch.randn_like(latents), shift_timesteps(timesteps, 20, 1000, 0.1, True)


def gaussian_noise_estimate(teacher, latents, noise, timesteps, mean: float, std: float) -> torch.Tensor:
    """The exact eps of N(mean, std^2 I): s (x_t - a mean) / (a^2 std^2 + s^2)."""
    signal, level = signal_and_noise_level(teacher.alphas_cumprod, timesteps)
    noisy = signal * latents + level * noise
    return level * (noisy - signal * mean) / ((signal * std) ** 2 + level**2)


def test_sds_of_a_gaussian_in_closed_form_and_its_expectation():
    teacher, timestep, point = two_modes(), 400, 0.7
    batch_size = 40000
    torch.manual_seed(1)
    latents = torch.full((batch_size, 2, 1, 1), point, dtype=DOUBLE)
    noise, timesteps = torch.randn_like(latents), torch.full((batch_size,), timestep)
    result = sds_gradient(
        Query(
            teacher,
            latents,
            first_mode(batch_size),
            timesteps,
            noise,
            timesteps,
            guidance_scale=1.0,
            weighting="uniform",
        ),
    )
    torch.testing.assert_close(
        result.gradient, gaussian_noise_estimate(teacher, latents, noise, timesteps, 2.0, 0.3) - noise
    )
    signal, level = signal_and_noise_level(teacher.alphas_cumprod, torch.tensor([timestep]))
    expectation = (level * signal * (point - 2.0) / ((signal * 0.3) ** 2 + level**2)).item()
    error = result.gradient.std() / (2 * batch_size) ** 0.5
    assert abs(result.gradient.mean().item() - expectation) < 4 * error


def test_csd_is_the_scaled_classifier_score():
    teacher = two_modes()
    latents, timesteps, noise, shifted = draw(6)
    result = csd_gradient(
        Query(teacher, latents, first_mode(6), timesteps, noise, shifted, guidance_scale=7.5, weighting="sds"),
    )
    noisy = teacher.add_noise(latents, noise, timesteps)
    conditional = teacher.predict_noise(noisy, timesteps, about([1, 0], 6))
    unconditional = teacher.predict_noise(noisy, timesteps, about([0.5, 0.5], 6))
    expected = weight(teacher.alphas_cumprod, timesteps, "sds") * 7.5 * (conditional - unconditional)
    torch.testing.assert_close(result.gradient, expected)


def test_normalized_csd_is_the_classifier_score_by_each_samples_own_distance():
    """The exact posterior mean stands in for z_hat: E[x | x_t] of one Gaussian, here with s = 2 from two of them."""
    teacher = two_modes()
    latents, timesteps, noise, shifted = draw(6)
    latents[0] = 9.0  # far from what the teacher sees: its step alone is shortened
    call = dict(guidance_scale=2.0, weighting="sds")
    result = METHODS["normalized_csd"](Query(teacher, latents, first_mode(6), timesteps, noise, shifted, **call))
    signal, level = signal_and_noise_level(teacher.alphas_cumprod, timesteps)
    noisy = teacher.add_noise(latents, noise, timesteps)
    conditional = gaussian_noise_estimate(teacher, latents, noise, timesteps, 2.0, 0.3)
    clean = 2.0 + signal * 0.3**2 / ((signal * 0.3) ** 2 + level**2) * (noisy - signal * 2.0)  # E[x | x_t, first mode]
    torch.testing.assert_close((noisy - level * conditional) / signal, clean)
    unconditional = (noisy - level * teacher.predict_noise(noisy, timesteps, about([0.5, 0.5], 6))) / signal
    guided = unconditional + 2.0 * (clean - unconditional)
    distance = torch.stack([(z - g).abs().mean() for z, g in zip(latents, guided)]).view(-1, 1, 1, 1)
    torch.testing.assert_close(result.gradient, (clean - guided) / (distance + 0.1))
    alone = METHODS["normalized_csd"](
        Query(teacher, latents[1:], first_mode(5), timesteps[1:], noise[1:], shifted[1:], **call),
    )
    torch.testing.assert_close(result.gradient[1:], alone.gradient)


def test_normalized_csd_points_along_csd_and_grows_less_with_the_distance():
    """With two dimensions of equal means each sample's gradient is CSD's times a positive number."""
    teacher = two_modes()
    latents, timesteps, noise, shifted = draw(64)
    call = dict(guidance_scale=7.5, weighting="uniform")
    query = Query(teacher, latents, first_mode(64), timesteps, noise, shifted, **call)
    ours, csd = METHODS["normalized_csd"](query).gradient, csd_gradient(query).gradient
    sure = csd.flatten(1).norm(dim=1) > 1e-6
    ratio = (ours.flatten(1).norm(dim=1) / csd.flatten(1).norm(dim=1))[sure]
    torch.testing.assert_close(ours[sure], ratio.view(-1, 1, 1, 1) * csd[sure])
    # |z_c - z_hat| <= |z - z_hat| + |z - z_c|: bounded where CSD in clean latents is not
    signal, level = signal_and_noise_level(teacher.alphas_cumprod, timesteps)
    assert ours.abs().max() < (level / signal * csd).abs().max()


def test_asd_without_shift_is_a_rescaled_classifier_score():
    teacher = two_modes()
    latents, timesteps, noise, _ = draw(6)
    asd = asd_gradient(
        Query(
            teacher,
            latents,
            first_mode(6),
            timesteps,
            noise,
            timesteps,
            guidance_scale=7.5,
            weighting="fantasia3d",
        ),
    )
    csd = csd_gradient(
        Query(
            teacher,
            latents,
            first_mode(6),
            timesteps,
            noise,
            timesteps,
            guidance_scale=6.5,
            weighting="fantasia3d",
        ),
    )
    torch.testing.assert_close(asd.gradient, csd.gradient)
    assert csd.gradient.abs().max() > 1e-3


def test_asd_with_a_shift_in_closed_form():
    """One Gaussian, guided or not: w(t) (eps(x_t, t) - eps(x_t', t')), with the same noise in both."""
    teacher = two_modes()
    latents, timesteps, noise, shifted = draw(6)
    assert (shifted > timesteps).any()
    condition = about([1, 0], 6)
    result = asd_gradient(
        Query(
            teacher,
            latents,
            Conditions(condition, condition),
            timesteps,
            noise,
            shifted,
            guidance_scale=7.5,
            weighting="sds",
        ),
    )
    at_t = gaussian_noise_estimate(teacher, latents, noise, timesteps, 2.0, 0.3)
    at_shifted = gaussian_noise_estimate(teacher, latents, noise, shifted, 2.0, 0.3)
    expected = weight(teacher.alphas_cumprod, timesteps, "sds") * (at_t - at_shifted)
    torch.testing.assert_close(result.gradient, expected)


def test_asds_second_branch_is_conditional_and_without_guidance():
    teacher = two_modes()
    latents, timesteps, noise, shifted = draw(6)
    small, large = (
        asd_gradient(
            Query(
                teacher,
                latents,
                first_mode(6),
                timesteps,
                noise,
                shifted,
                guidance_scale=scale,
                weighting="uniform",
            ),
        ).gradient
        for scale in (1.0, 8.5)
    )
    csd = csd_gradient(
        Query(teacher, latents, first_mode(6), timesteps, noise, shifted, guidance_scale=7.5, weighting="uniform"),
    ).gradient
    torch.testing.assert_close(large - small, csd)  # the guidance scale touches the first branch alone
    at_t = gaussian_noise_estimate(teacher, latents, noise, timesteps, 2.0, 0.3)
    at_shifted = gaussian_noise_estimate(teacher, latents, noise, shifted, 2.0, 0.3)
    torch.testing.assert_close(small, at_t - at_shifted)


@pytest.mark.parametrize("variance_reduction", [True, False])
def test_sjc_is_its_papers_estimate(variance_reduction):
    """(x - D(z)) / sigma, or (z - D(z)) / sigma without variance reduction; z = x + sigma eps, sigma = s / a."""
    teacher = two_modes()
    latents, timesteps, noise, shifted = draw(6)
    signal, level = signal_and_noise_level(teacher.alphas_cumprod, timesteps)
    sigma = level / signal
    z = latents + sigma * noise
    denoised = z - sigma * teacher.predict_noise(z / (1 + sigma**2).sqrt(), timesteps, about([1, 0], 6))
    expected = ((latents if variance_reduction else z) - denoised) / sigma
    method = sds_gradient if variance_reduction else sjc_gradient
    result = method(
        Query(teacher, latents, first_mode(6), timesteps, noise, shifted, guidance_scale=1.0, weighting="uniform"),
    )
    torch.testing.assert_close(result.gradient, expected)


@pytest.mark.parametrize("name", ["asd", "sds", "csd", "normalized_csd"])
def test_following_the_gradient_leads_to_the_mode_that_was_asked_for(name):
    """Guidance overshoots along the line between the modes, and the annealed timesteps bring it back."""
    teacher, steps = two_modes(), 700
    torch.manual_seed(0)
    particles = 3 * torch.randn(64, 2, 1, 1, dtype=DOUBLE)
    assert (particles < 0).any()
    for step in range(steps):
        low, high = (round(start + (end - start) * step / steps) for start, end in ((500, 20), (980, 500)))
        timesteps = sample_timesteps(low, high, 64, particles.device)
        shifted = shift_timesteps(timesteps, low, 1000, 0.1, True)
        noise = torch.randn_like(particles)
        particles -= (
            0.5
            * METHODS[name](
                Query(
                    teacher,
                    particles,
                    first_mode(64),
                    timesteps,
                    noise,
                    shifted,
                    guidance_scale=1.5,
                    weighting="sds",
                ),
            ).gradient
        )
    assert (particles > 1.0).all()
    if not name.endswith("csd"):  # the classifier alone does not stop at the mode
        assert (particles - 2.0).abs().median() < 0.75


def test_classifier_free_guidance():
    positive, unconditional = torch.randn(2, 3, 1, 2, 2)
    assert torch.equal(classifier_free(positive, unconditional, 0.0), unconditional)
    torch.testing.assert_close(classifier_free(positive, unconditional, 1.0), positive)
    torch.testing.assert_close(
        classifier_free(positive, unconditional, 3.0), unconditional + 3 * (positive - unconditional)
    )


def test_perp_neg_takes_away_only_what_is_orthogonal():
    unconditional = torch.zeros(1, 2, 1, 1)
    positive = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1)
    negatives = torch.tensor([[5.0, 3.0], [7.0, 0.0]]).view(1, 2, 2, 1, 1)
    got = perp_neg(positive, unconditional, negatives, torch.tensor([[-0.5, -9.0]]), 10.0)
    # the first negative's orthogonal part is (0, 3); the second has none
    torch.testing.assert_close(got.flatten(), torch.tensor([20.0, -15.0]))


def test_perp_neg_without_weights_is_classifier_free():
    positive, unconditional = torch.randn(2, 3, 4, 2, 2)
    negatives = torch.randn(3, 2, 4, 2, 2)
    got = perp_neg(positive, unconditional, negatives, torch.zeros(3, 2), 7.5)
    torch.testing.assert_close(got, classifier_free(positive, unconditional, 7.5))
    same = perp_neg(positive, positive, negatives, -torch.ones(3, 2), 7.5)  # no direction: finite
    assert same.isfinite().all()


@pytest.fixture(scope="module")
def tiny_teacher(tiny_sd_folder):
    return LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder))


@pytest.mark.parametrize("with_negatives", [False, True])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_batch_is_its_samples(tiny_teacher, name, with_negatives):
    torch.manual_seed(3)
    batch_size, noisy = 3, torch.randn(2, 3, 4, 8, 8)
    latents, noise = noisy
    timesteps, shifted = torch.tensor([30, 500, 900]), torch.tensor([40, 540, 950])
    positive, unconditional = (TextCondition(torch.randn(3, 12, 16)) for _ in range(2))
    negative, weights = torch.randn(3, 2, 12, 16), torch.rand(3, 2) - 1

    def gradient(rows: slice) -> torch.Tensor:
        negatives = Negatives(TextCondition(negative[rows].flatten(0, 1)), weights[rows]) if with_negatives else None
        parts = (TextCondition(part.embeddings[rows]) for part in (positive, unconditional))
        return METHODS[name](
            Query(
                tiny_teacher,
                latents[rows],
                Conditions(*parts, negatives),
                timesteps[rows],
                noise[rows],
                shifted[rows],
                guidance_scale=7.5,
                weighting="sds",
            ),
        ).gradient

    together = gradient(slice(0, batch_size))
    alone = torch.cat([gradient(slice(index, index + 1)) for index in range(batch_size)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    reordered = torch.cat([gradient(slice(1, 3)), gradient(slice(0, 1))])
    torch.testing.assert_close(reordered.roll(1, 0), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "branches"), [("sds", 2), ("csd", 2), ("normalized_csd", 2), ("asd", 3)])
def test_the_teacher_is_asked_once(tiny_teacher, name, branches):
    asked = []
    handle = tiny_teacher.unet.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].shape[0]))
    try:
        text = TextCondition(torch.zeros(2, 12, 16))
        negatives = Negatives(TextCondition(torch.zeros(4, 12, 16)), torch.zeros(2, 2))
        timesteps = torch.tensor([30, 500])
        latents = torch.zeros(2, 4, 8, 8)
        for conditions in (Conditions(text, text), Conditions(text, text, negatives)):
            METHODS[name](
                Query(
                    tiny_teacher,
                    latents,
                    conditions,
                    timesteps,
                    latents,
                    timesteps,
                    guidance_scale=7.5,
                    weighting="sds",
                ),
            )
    finally:
        handle.remove()
    assert asked == [2 * branches, 2 * (branches + 2)]
