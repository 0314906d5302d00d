"""The gradients of the distillation methods, by hand: one pixel, a teacher of single points.

A teacher that knows one image m answers eps = (x_t - a m) / s exactly. With z = 1, noise 1/2 and alphas_cumprod
(0.64, 0.36), a and s are 0.8 and 0.6 at t = 0 and 0.6 and 0.8 at t' = 1, so x_t = 1.1 and x_t' = 1.0. The prompt's
image is 2, the empty prompt's -1, that of the renders' own model 1/2:

    eps_c = (1.1 - 1.6) / 0.6 = -5/6     eps_u = (1.1 + 0.8) / 0.6 = 19/6     eps_c(x_t', t') = (1 - 1.2) / 0.8 = -1/4
    eps_u + 3 (eps_c - eps_u) = 19/6 - 12 = -53/6                              eps_phi = (1.1 - 0.4) / 0.6 = 7/6
"""

from functools import partial

import pytest
import torch
from turboprop.distillation import METHODS, Conditions, Query, ddim_inversion, sdi_gradient, vsd_gradient
from turboprop.distillation.inversion import inversion_step, posterior_std
from turboprop.distillation.methods import perp_neg
from turboprop.distillation.preview import ddim_step
from turboprop.distillation.renders import Renders
from turboprop.distillation.step import distill, distillation_loss
from turboprop.distillation.weighting import weight
from turboprop.teachers import GaussianMixtureTeacher, TextCondition
from turboprop.teachers.noise_schedule import prediction_target, scaled_linear_alphas_cumprod, to_epsilon

import threestudio

DOUBLE = torch.float64
SCHEDULE = torch.tensor([0.64, 0.36], dtype=DOUBLE)
PROMPT, EMPTY, RENDERS = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
GUIDED = -53 / 6


def teacher() -> GaussianMixtureTeacher:
    return GaussianMixtureTeacher(torch.tensor([2.0, -1.0, 0.5], dtype=DOUBLE).view(3, 1, 1, 1), [0.0] * 3, SCHEDULE)


def about(weights: list[float]) -> TextCondition:
    return TextCondition(torch.tensor([[weights]], dtype=DOUBLE))


def pixel(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=DOUBLE)


def gradient_of(method, weighting: str = "sds", **options) -> float:
    time, later = torch.tensor([0]), torch.tensor([1])
    conditions = Conditions(about(PROMPT), about(EMPTY))
    result = method(
        Query(teacher(), pixel(1.0), conditions, time, pixel(0.5), later, guidance_scale=3.0, weighting=weighting),
        **options,
    )
    return result.gradient.item()


PUBLISHED = {
    "sds": GUIDED - 1 / 2,  # DreamFusion, equation 3: eps_hat - eps
    "csd": -12.0,  # CSD, equation 8: s (eps_c - eps_u)
    "asd": GUIDED + 1 / 4,  # ScaleDreamer: eps_hat - eps_c(x_t', t'), without guidance
    "sjc": GUIDED,  # SJC, equation 9: (z - D(z)) / sigma = eps_hat
}


@pytest.mark.parametrize("name, difference", PUBLISHED.items())
def test_methods(name, difference):
    assert gradient_of(METHODS[name]) == pytest.approx(0.36 * difference, rel=1e-12)
    assert gradient_of(METHODS[name], "uniform") == pytest.approx(difference, rel=1e-12)


@pytest.mark.parametrize("weighting", ["sds", "uniform"])
def test_normalized_csd(weighting):
    """TriplaneTurbo: z_hat = (1.1 + 0.6 * 53/6) / 0.8 = 8 and z_c = 2, so (2 - 8) / (|1 - 8| + 0.1), whatever w."""
    assert gradient_of(METHODS["normalized_csd"], weighting) == pytest.approx(-6 / 7.1, rel=1e-12)


def test_vsd():
    """ProlificDreamer, equation 9: eps_hat - eps_phi; with a scale of its own eps_phi is guided too."""
    own = Conditions(about(RENDERS), about(EMPTY))
    one = gradient_of(vsd_gradient, render_teacher=teacher(), render_conditions=own)
    assert one == pytest.approx(0.36 * (GUIDED - 7 / 6), rel=1e-12)
    two = gradient_of(vsd_gradient, render_teacher=teacher(), render_conditions=own, render_guidance_scale=2.0)
    assert two == pytest.approx(0.36 * (GUIDED - (19 / 6 + 2 * (7 / 6 - 19 / 6))), rel=1e-12)


def test_sdi_is_the_distance_to_the_guided_clean_image():
    """z_hat = (1.1 + 0.6 * 53/6) / 0.8 = 8, so z - z_hat = -7; found noise is that of the inversion."""
    assert gradient_of(sdi_gradient, invert=False) == pytest.approx(-7.0, rel=1e-12)
    # One step of inversion from clean to t' = 1 by eps_c at t = 0: (1 - 1.6) / 0.6 = -1, the noise that is found.
    options = {"inversion_guidance_scale": 1.0, "inversion_n_steps": 2, "inversion_eta": 0.0}
    x = 0.8 * 1 + 0.6 * -1
    guided = (x + 0.8) / 0.6 + 3 * ((x - 1.6) / 0.6 - (x + 0.8) / 0.6)
    assert gradient_of(sdi_gradient, **options) == pytest.approx(1 - (x - 0.6 * guided) / 0.8, rel=1e-12)


def test_weightings():
    both = torch.tensor([0, 1])
    expected = {"sds": [0.36, 0.64], "uniform": [1.0, 1.0], "fantasia3d": [0.8 * 0.36, 0.6 * 0.64]}
    for strategy, values in expected.items():
        assert weight(SCHEDULE, both, strategy).flatten().tolist() == pytest.approx(values)


def test_the_loss_has_the_gradient_by_sample():
    latents = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    loss = distillation_loss(latents, torch.tensor([[2.0, 0.0], [0.0, -4.0]]))
    loss.backward()
    assert loss.item() == pytest.approx((4 + 16) / 4)  # |gradient|^2 / (2 B)
    assert latents.grad.tolist() == [[1.0, 0.0], [0.0, -2.0]]


def image_gradient(method) -> float:
    """d loss_x_img / d image of a picture of 0.9, by a teacher whose images 0 to 1 are latents -1 to 1."""
    query = Query(
        teacher(), pixel(1.0), Conditions(about(PROMPT), about(EMPTY)), torch.tensor([0]), pixel(0.5),
        torch.tensor([1]), guidance_scale=1.1,
    )  # fmt: skip
    image = pixel(0.9).requires_grad_()
    output = distill("x", method, query, Renders(image, pixel(1.0)), image_loss=True).output
    return torch.autograd.grad(output["loss_x_img"], image)[0].item()


def test_hifas_distance_of_pictures():
    """HiFA, equation 9: w a / s (x - x_hat), x_hat the picture of the clean latents, cut to [0, 1].

    eps_hat is 19/6 - 1.1 * 4 = -37/30, so z_hat is (1.1 + 0.6 * 37/30) / 0.8 = 2.3 and x_hat is 1. By the renders' own
    score, 7/6, their clean latents are 1/2, whose picture is 3/4: threestudio's VSD has it in the place of x.
    """
    factor = 0.36 * 0.8 / 0.6
    assert image_gradient(METHODS["sds"]) == pytest.approx(factor * (0.9 - 1))
    own = Conditions(about(RENDERS), about(EMPTY))
    vsd = partial(vsd_gradient, render_teacher=teacher(), render_conditions=own)
    assert image_gradient(vsd) == pytest.approx(factor * (0.75 - 1))


def test_perp_neg():
    """Equation 8: what of a negative is orthogonal to the main direction pushes, by its weight."""
    positive, empty = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])  # main direction (2, 0)
    negatives = torch.tensor([[2.0, 2.0], [4.0, 0.0]])  # (1, 1) and (3, -1): orthogonal parts (0, 1) and (0, -1)
    batch = positive.view(1, 2, 1, 1), empty.view(1, 2, 1, 1), negatives.view(1, 2, 2, 1, 1)
    found = perp_neg(*batch, torch.tensor([[-0.5, -2.0]]), 7.5)
    assert found.flatten().tolist() == pytest.approx([1 + 7.5 * 2, 1 + 7.5 * (-0.5 + 2.0)])


def test_ddim_steps_forth_and_back():
    """DDIM, equation 12: x at t = 1 is 1.0 and eps is 1/2, so clean is (1 - 0.4) / 0.6 = 1 and x at t = 0 is 1.1."""
    zero, one = torch.tensor([0]), torch.tensor([1])
    assert ddim_step(pixel(1.0), pixel(0.5), one, zero, SCHEDULE).item() == pytest.approx(1.1)
    assert ddim_step(pixel(1.0), pixel(0.5), one, zero - 1, SCHEDULE).item() == pytest.approx(1.0)
    assert inversion_step(pixel(1.1), pixel(0.5), zero, one, SCHEDULE).item() == pytest.approx(1.0)
    assert inversion_step(pixel(1.0), pixel(0.5), zero - 1, zero, SCHEDULE).item() == pytest.approx(1.1)
    # Equation 16 with eta = 1: (1 - 0.64) / (1 - 0.36) (1 - 0.36 / 0.64) = 0.5625 * 0.4375
    assert posterior_std(zero, one, SCHEDULE).item() == pytest.approx((0.5625 * 0.4375) ** 0.5)
    straight = ddim_inversion(pixel(1.0), one, lambda noisy, t: pixel(0.5), SCHEDULE, 2)
    assert straight.item() == pytest.approx(1.0)


def test_prediction_types():
    """x_t = 1.1 of clean 1 and noise 1/2: v = a eps - s x_0 = 0.4 - 0.6 (Salimans and Ho 2022)."""
    zero = torch.tensor([0])
    for kind, value in {"epsilon": 0.5, "sample": 1.0, "v_prediction": -0.2}.items():
        target = prediction_target(pixel(1.0), pixel(0.5), zero, SCHEDULE, kind)
        assert target.item() == pytest.approx(value)
        assert to_epsilon(target, pixel(1.1), zero, SCHEDULE, kind).item() == pytest.approx(0.5)


def test_latent_diffusions_schedule():
    """beta is (0.00085^(1/2) + (0.012^(1/2) - 0.00085^(1/2)) t / 999)^2."""
    found = scaled_linear_alphas_cumprod()
    first, last = 0.00085**0.5, 0.012**0.5
    product = 1.0
    for t in range(1000):
        product *= 1 - (first + (last - first) * t / 999) ** 2
        if t in (0, 1, 499, 999):
            assert found[t].item() == pytest.approx(product, rel=1e-9)
    assert found[999].item() == pytest.approx(0.00466, abs=1e-5)  # Stable Diffusion's terminal signal


@pytest.mark.parametrize(
    "name, guided",
    [
        ("turboprop-sds-guidance", 19 / 6 - 3 * 4),  # eps_u + s (eps_c - eps_u)
        ("stable-diffusion-guidance", -5 / 6 - 3 * 4),  # threestudio: eps_c + s (eps_c - eps_u)
    ],
)
def test_the_two_conventions_of_the_guidance_scale(name, guided):
    cfg = {"guidance_scale": 3.0, "min_step_percent": 0.0, "max_step_percent": 0.0}
    guidance = threestudio.find(name)(cfg, teacher=teacher())
    torch.manual_seed(0)
    noise = torch.randn_like(pixel(0.0))
    latents = pixel(1.1 / 0.8) - 0.6 / 0.8 * noise  # so that x_t is 1.1
    conditions, time = Conditions(about(PROMPT), about(EMPTY)), torch.tensor([0])
    scale = guidance.usual_scale(3.0, conditions)
    query = Query(guidance.teacher, latents, conditions, time, noise, time, scale, weighting="uniform")
    result = guidance.method(query)
    assert result.guided_noise.item() == pytest.approx(guided)
