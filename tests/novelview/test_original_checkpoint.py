"""zero-1-to-3's .ckpt files: every weight at its place, the moving average taken, nothing of a file executed."""

import datetime

import pytest
import torch
from turboprop.novelview.loading import load_novel_view_model

from .original_layout import original_tensors


@pytest.fixture(scope="module")
def parts():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=8, out_channels=4, block_out_channels=(32, 64, 64), layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24, attention_head_dim=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=2, latent_channels=4, sample_size=256,
    )  # fmt: skip
    clip = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=64, intermediate_size=96, projection_dim=24, num_hidden_layers=2, num_attention_heads=1,
            image_size=28, patch_size=14,
        )
    )  # fmt: skip
    return unet, vae, clip, torch.nn.Linear(28, 24)


def write(path, tensors, **beside):
    torch.save({"state_dict": tensors, "epoch": 3, "global_step": 105000, **beside}, path)
    return path


@pytest.fixture()
def checkpoint(parts, tmp_path):
    return write(tmp_path / "105000.ckpt", original_tensors(*parts))


def assert_same(part, other):
    ours, theirs = part.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@torch.no_grad()
def test_every_weight_is_at_its_place(parts, checkpoint):
    unet, vae, clip, projection = parts
    model = load_novel_view_model(str(checkpoint))
    for loaded, original in ((model.unet, unet), (model.vae, vae), (model.image_encoder.model, clip)):
        assert_same(loaded, original)
    assert_same(model.tokens.projection, projection)
    assert model.settings.fourth_number == "distance_difference"
    assert model.image_size == 256 and model.vae.config.scaling_factor == 0.18215
    noisy, tokens = torch.randn(1, 8, 8, 8), torch.randn(1, 1, 24)
    expected = unet(noisy, torch.tensor([5]), tokens).sample
    assert torch.equal(model.unet(noisy, torch.tensor([5]), tokens).sample, expected)
    pixels = torch.randn(1, 3, 28, 28)
    assert torch.equal(model.image_encoder.model(pixels).image_embeds, clip.eval()(pixels).image_embeds)


def test_the_moving_average_is_taken(parts, tmp_path):
    tensors = original_tensors(*parts)
    for key in [key for key in tensors if key.startswith("model.diffusion_model.")]:
        tensors["model_ema." + key.removeprefix("model.").replace(".", "")] = tensors[key] + 1.0
    tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    model = load_novel_view_model(str(write(tmp_path / "ema.ckpt", tensors)))
    torch.testing.assert_close(model.unet.conv_in.weight, parts[0].conv_in.weight + 1.0)
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    torch.testing.assert_close(model.unet.state_dict()[key], parts[0].state_dict()[key] + 1.0)


def test_stable_zero123_is_known_by_its_name(parts, tmp_path):
    path = write(tmp_path / "stable_zero123.ckpt", original_tensors(*parts))
    assert load_novel_view_model(str(path)).settings.fourth_number == "input_polar_angle"
    explicit = load_novel_view_model(str(path), fourth_number="distance_difference")
    assert explicit.settings.fourth_number == "distance_difference"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_safetensors_of_the_same_names(dtype, parts, tmp_path):
    """As the hub has stable_zero123.safetensors: the state dict alone."""
    from safetensors.torch import save_file

    path = tmp_path / "stable_zero123.safetensors"
    save_file({key: value.to(dtype).contiguous() for key, value in original_tensors(*parts).items()}, path)
    model = load_novel_view_model(str(path))
    assert model.settings.fourth_number == "input_polar_angle"
    expected = parts[0].conv_in.weight.to(dtype).float()
    assert torch.equal(model.unet.conv_in.weight, expected)


def test_objects_of_the_run_do_not_hinder(parts, tmp_path):
    from pytorch_lightning.callbacks import ModelCheckpoint

    path = write(tmp_path / "run.ckpt", original_tensors(*parts), callbacks={ModelCheckpoint: {"best": 0.1}})
    assert_same(load_novel_view_model(str(path)).unet, parts[0])


class Malicious:
    """Makes a folder when a careless loader reads it."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.folder),)


def test_a_file_with_code_is_refused_and_does_not_run(parts, tmp_path):
    path = write(tmp_path / "bad.ckpt", original_tensors(*parts), callbacks=Malicious(tmp_path / "made"))
    with pytest.raises(ValueError, match="holds the object .*mkdir: not loaded"):
        load_novel_view_model(str(path))
    assert not (tmp_path / "made").exists()
    write(path, original_tensors(*parts), when=datetime.datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="datetime"):
        load_novel_view_model(str(path))


def test_bad_files_say_what_is_wrong(parts, checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint .*none.ckpt; .* such as kxic/zero123-xl"):
        load_novel_view_model(str(tmp_path / "none.ckpt"))
    with pytest.raises(FileNotFoundError, match="such as ashawkey/stable-zero123-diffusers"):
        load_novel_view_model(str(tmp_path / "stable_zero123.ckpt"))
    (tmp_path / "stable_zero123.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="cannot read .*stable_zero123.safetensors"):
        load_novel_view_model(str(tmp_path / "stable_zero123.safetensors"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot read"):
        load_novel_view_model(str(checkpoint))
    tensors = original_tensors(*parts)
    text_model = {key: value for key, value in tensors.items() if not key.startswith("cc_projection")}
    with pytest.raises(ValueError, match=r"no zero123 checkpoint: no weights cc_projection"):
        load_novel_view_model(str(write(tmp_path / "sd.ckpt", text_model)))
    tensors.pop("model.diffusion_model.middle_block.0.in_layers.0.weight")
    with pytest.raises(ValueError, match=r"weights model.diffusion_model.\*: Missing.*mid_block.resnets.0.norm1"):
        load_novel_view_model(str(write(tmp_path / "holes.ckpt", tensors)))
    tensors = original_tensors(*parts) | {"cc_projection.weight": torch.zeros(24, 30)}
    with pytest.raises(ValueError, match=r"cc_projection.\*: size mismatch"):
        load_novel_view_model(str(write(tmp_path / "wide.ckpt", tensors)))
