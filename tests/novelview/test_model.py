"""The novel-view model: encoders, tokens, injection, null conditions, and its own files."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from turboprop.novelview.condition import ConditionDropout, draw_condition_dropout
from turboprop.novelview.conditioning import FeatureInjection, FloatLayerNorm, injection_shapes
from turboprop.novelview.image_encoders import ImageEncoder, read_encoder
from turboprop.novelview.loading import load_novel_view_model, save_novel_view_model
from turboprop.novelview.model import NovelViewModel, NovelViewSettings, widened_for_input_view
from turboprop.teachers.noise_schedule import scaled_linear_alphas_cumprod

from ..tiny_novelview import CROSS_ATTENTION, tiny_clip, tiny_dino, tiny_unet, tiny_vae

KINDS = ["dinov2", "dinov2_with_registers", "dinov3_vit"]


def make_model(settings: NovelViewSettings, encoder=None, feature_encoder=None) -> NovelViewModel:
    torch.manual_seed(1)
    encoder = ImageEncoder(tiny_dino()) if encoder is None else encoder
    alphas = scaled_linear_alphas_cumprod()
    return NovelViewModel(tiny_unet(), tiny_vae(), encoder, settings, alphas, feature_encoder=feature_encoder).eval()


@pytest.fixture()
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


POSE = torch.tensor([[0.1, 0.0, 1.0, 0.0], [0.3, 0.7, 0.7, 0.1], [0.0, -1.0, 0.0, -0.2]])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_dino_is_asked_as_transformers_asks_it(kind, images):
    encoder = ImageEncoder(tiny_dino(kind))
    encoded = encoder(images, layers=(1, 3))
    side, skipped = encoder.image_size, {"dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 5}[kind]
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    resized = F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)
    output = encoder.model(((resized + 1) / 2 - mean) / std, output_hidden_states=True)
    assert torch.equal(encoded.patches, output.last_hidden_state[:, skipped:])
    assert torch.equal(encoded.pooled, output.pooler_output)
    states = output.hidden_states[2][:, skipped:]  # block 1, row by row
    assert torch.equal(encoded.levels[0][:, :, 1, 0], states[:, encoder.grid])
    assert encoded.levels[1].shape == (3, 24, 2, 2) and encoder.grid == 2


def test_a_whole_clip_gives_its_vision_tower(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 50},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )  # fmt: skip
    model = CLIPModel(config)
    model.save_pretrained(tmp_path)
    encoder = read_encoder(tmp_path)
    assert encoder.pooled_width == 12 and encoder.image_size == 16
    assert torch.equal(encoder.model.visual_projection.weight, model.visual_projection.weight)


def test_encoders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="image_encoder_size: expected a multiple of the patches' side 14, got 30"):
        ImageEncoder(tiny_dino(), 30)
    with pytest.raises(ValueError, match="this CLIP takes pictures of 28, got 56"):
        ImageEncoder(tiny_clip(), 56)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="expected a model of type .*dinov2.*got 'vit'"):
        read_encoder(tmp_path)
    tiny_dino().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 5}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lacks .* weights of Dinov2Model"):
        read_encoder(tmp_path)


def test_the_encoder_stays_frozen_and_in_evaluation_mode():
    model = make_model(NovelViewSettings(tokens="patches")).train()
    assert not model.image_encoder.model.training and not model.vae.training and model.unet.training
    assert not any(parameter.requires_grad for parameter in model.image_encoder.parameters())


@torch.no_grad()
def test_layer_norm_is_float32_under_half_precision():
    norm = FloatLayerNorm(8).to(torch.bfloat16)
    values = torch.randn(4, 8) * 3e4  # overflows float16 when squared
    with torch.autocast("cpu", torch.bfloat16):
        answer = norm(values.bfloat16())
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, F.layer_norm(values.bfloat16().float(), (8,)))


@torch.no_grad()
def test_injection_is_nothing_at_the_start_and_something_later(images):
    """Step 0 is the base model."""
    settings = NovelViewSettings(tokens="pooled", feature_layers=(1, 3))
    model = make_model(settings, ImageEncoder(tiny_clip()), ImageEncoder(tiny_dino()))
    view = model.encode_view(images)
    condition = model.condition(view, POSE)
    noisy, timesteps = torch.randn(3, 4, 8, 8), torch.tensor([900, 500, 3])
    joined = torch.cat([noisy, condition.latents], 1)
    base = model.unet(joined, timesteps, encoder_hidden_states=condition.tokens).sample
    assert torch.equal(model(noisy, timesteps, condition), base)
    for projection in model.injection.projections:
        torch.nn.init.normal_(projection.weight, std=0.1)
    assert not torch.allclose(model(noisy, timesteps, model.condition(view, POSE)), base, atol=1e-3)


def test_every_block_of_the_down_path_is_fed_and_trains(images):
    model = make_model(NovelViewSettings(tokens="patches", feature_layers=(0, 3)))
    assert injection_shapes(model.unet) == [(8, 4), (16, 4)]  # the first has no cross-attention: after it halves
    condition = model.condition(model.encode_view(images), POSE)
    assert [tuple(maps.shape) for maps in condition.features] == [(3, 8, 4, 4), (3, 16, 4, 4)]
    prediction = model(torch.randn(3, 4, 8, 8), torch.tensor([900, 500, 3]), condition)
    prediction.square().mean().backward()
    assert all(projection.weight.grad.abs().sum() > 0 for projection in model.injection.projections)
    assert model.tokens.projection.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.image_encoder.parameters())


def test_shapes_of_stable_diffusions_unet():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=32, in_channels=8, cross_attention_dim=768)
    assert injection_shapes(unet) == [(320, 32), (640, 16), (1280, 8), (1280, 4)]


@torch.no_grad()
def test_maps_keep_their_place_when_resized():
    injection = FeatureInjection(2, 1, [(1, 8), (1, 2)])
    for projection in injection.projections:
        projection.weight.fill_(0.0)
        projection.weight[0, 0] = 1.0
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, :2, 2:] = 1.0  # upper right
    large, small = injection([maps])
    assert large.shape == (1, 1, 8, 8) and small.shape == (1, 1, 2, 2)
    assert large[0, 0, 1, 6] > large[0, 0, 6, 1] and small[0, 0, 0, 1] > small[0, 0, 1, 0]


@torch.no_grad()
def test_tokens_of_patches_carry_the_camera(images):
    model = make_model(NovelViewSettings(tokens="patches", normalize_tokens=True))
    view = model.encode_view(images)
    tokens = model.condition(view, POSE).tokens
    assert tokens.shape == (3, 4, CROSS_ATTENTION)
    turned = model.condition(view, POSE + torch.tensor([0.0, 0.5, -0.5, 0.0])).tokens
    weight = model.tokens.projection.weight
    step = 0.5 * weight[:, -3] - 0.5 * weight[:, -2]
    torch.testing.assert_close(turned - tokens, step.expand_as(tokens), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_projection_starts_as_the_identity():
    projection = make_model(NovelViewSettings(), ImageEncoder(tiny_clip())).tokens.projection
    assert torch.equal(projection.weight[:, :CROSS_ATTENTION], torch.eye(CROSS_ATTENTION))
    assert not projection.bias.any() and projection.weight[:, CROSS_ATTENTION:].abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("null", ["projected_zeros", "zero123"])
def test_the_null_condition_of_training(images, null):
    settings = NovelViewSettings(tokens="patches", feature_layers=(1,), null_condition=null)
    model = make_model(settings)
    for projection in model.injection.projections:
        torch.nn.init.normal_(projection.weight)
    view = model.encode_view(images)
    dropout = ConditionDropout(torch.tensor([True, True, False]), torch.tensor([False, True, True]))
    condition, whole = model.condition(view, POSE, dropout), model.condition(view, POSE)
    sampled = whole.without_image()
    assert torch.equal(condition.tokens[2], whole.tokens[2]) and torch.equal(condition.latents[0], whole.latents[0])
    assert not condition.latents[1:].any() and not condition.features[0][:2].any()
    assert torch.equal(condition.features[0][2], whole.features[0][2])
    if null == "projected_zeros":
        assert torch.equal(condition.tokens[:2], sampled.tokens[:2])
    else:  # upstream: zeros before the projection, the camera kept
        weight, bias = model.tokens.projection.weight, model.tokens.projection.bias
        torch.testing.assert_close(condition.tokens[0], (POSE[0] @ weight[:, -4:].T + bias).expand(4, -1))


def test_condition_dropout_is_five_percent_each():
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    dropout = draw_condition_dropout(uniform, 0.05)
    both = dropout.image & dropout.latents
    counts = [(dropout.image & ~both).sum(), both.sum(), (dropout.latents & ~both).sum()]
    assert [int(count) for count in counts] == [500, 500, 500]
    assert not draw_condition_dropout(uniform, 0.0).image.any()
    with pytest.raises(ValueError, match="condition_dropout: expected a number within 0 to 1/3, got 0.5"):
        draw_condition_dropout(uniform, 0.5)


@torch.no_grad()
def test_a_widened_unet_ignores_the_input_view_at_first():
    torch.manual_seed(0)
    narrow = tiny_unet(in_channels=4)
    noisy, latents, tokens = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 3, CROSS_ATTENTION)
    before = narrow(noisy, torch.tensor([5, 6]), tokens).sample
    wide = widened_for_input_view(narrow)
    assert wide.config.in_channels == 8
    torch.testing.assert_close(wide(torch.cat([noisy, latents], 1), torch.tensor([5, 6]), tokens).sample, before)


@torch.no_grad()
@pytest.mark.parametrize("features_apart", [False, True])
def test_own_files_hold_the_whole_model(tmp_path, images, features_apart):
    settings = NovelViewSettings(
        tokens="patches", feature_layers=(0, 2), normalize_tokens=True, fourth_number="input_polar_angle"
    )
    apart = ImageEncoder(tiny_dino("dinov2_with_registers")) if features_apart else None
    model = make_model(settings, feature_encoder=apart)
    for projection in model.injection.projections:
        torch.nn.init.normal_(projection.weight)
    save_novel_view_model(model, tmp_path / "model")
    again = load_novel_view_model(str(tmp_path / "model"))
    assert again.settings == settings
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    torch.testing.assert_close(again.alphas_cumprod, model.alphas_cumprod, atol=1e-6, rtol=1e-5)
    noisy, timesteps = torch.randn(3, 4, 8, 8), torch.tensor([900, 500, 3])
    one, other = (m(noisy, timesteps, m.condition(m.encode_view(images), POSE)) for m in (model, again))
    assert torch.equal(one, other)
    assert list((tmp_path / "model").rglob("*.bin")) == []


@torch.no_grad()
def test_files_in_half_precision(tmp_path):
    model = make_model(NovelViewSettings(tokens="patches"))
    save_novel_view_model(model, tmp_path, torch.float16)
    assert model.unet.dtype == torch.float32
    again = load_novel_view_model(str(tmp_path))
    assert torch.equal(again.unet.conv_in.weight, model.unet.conv_in.weight.half().float())


@torch.no_grad()
def test_files_in_eight_bits(tmp_path):
    model = make_model(NovelViewSettings(tokens="patches"))
    save_novel_view_model(model, tmp_path, torch.float16, eight_bits=True)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    stored = load_file(path)
    largest = max(stored, key=lambda key: stored[key].numel())
    assert stored[largest].dtype == torch.int8
    again, before = load_novel_view_model(str(tmp_path)).unet.state_dict(), model.unet.state_dict()
    for key, value in before.items():
        rows = value.flatten(1) if value.dim() > 1 else value
        room = rows.abs().amax(-1, keepdim=True) / 254 if key + "_scale" in stored else rows.abs() / 1024
        difference = (again[key].reshape(rows.shape) - rows).abs()
        assert bool((difference <= room * 1.1 + 1e-6).all()), key
    save_file({key: value for key, value in stored.items() if key != f"{largest}_scale"}, path)
    with pytest.raises(ValueError, match=f"{largest} has int8 weights; expected a scale of shape"):
        load_novel_view_model(str(tmp_path))


def test_broken_files_say_what_is_wrong(tmp_path, tiny_sd_folder):
    save_novel_view_model(make_model(NovelViewSettings(tokens="patches")), tmp_path)
    with pytest.raises(ValueError, match="was trained with distance_difference, got input_polar_angle"):
        load_novel_view_model(str(tmp_path), fourth_number="input_polar_angle")
    wider = tmp_path / "image_encoder"
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(image_size=28, patch_size=14, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    Dinov2Model(config).save_pretrained(wider)
    with pytest.raises(ValueError, match=r"shape \[16, 28\], expected \[16, 36\].*encoder's width"):
        load_novel_view_model(str(tmp_path))
    settings = tmp_path / "conditioning" / "config.json"
    settings.write_text(json.dumps({"tokens": "words"}))
    with pytest.raises(ValueError, match="tokens: expected one of pooled, patches, got 'words'"):
        load_novel_view_model(str(tmp_path))
    settings.write_text(json.dumps({"token": "patches"}))
    with pytest.raises(ValueError, match="unknown key 'token'"):
        load_novel_view_model(str(tmp_path))
    with pytest.raises(ValueError, match="no novel-view model: its model_index.json has neither conditioning"):
        load_novel_view_model(str(tiny_sd_folder))


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="takes 4 channels and answers 4.*takes 8 and answers 4"):
        NovelViewModel(
            tiny_unet(4), tiny_vae(), ImageEncoder(tiny_clip()), NovelViewSettings(), scaled_linear_alphas_cumprod()
        )
    with pytest.raises(ValueError, match="feature_layers: the encoder has layers 0 to 3, got 11"):
        make_model(NovelViewSettings(feature_layers=(2, 11)))
