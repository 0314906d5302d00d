"""MVDream's published files: what loading makes of them computes what the original code computes."""

import errno
import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler
from turboprop.teachers import load_teacher
from turboprop.teachers.ldm_configs import text_config, unet_config, vae_config
from turboprop.teachers.multi_view.convert import convert, main
from turboprop.teachers.multi_view.published import (
    autoencoder_of,
    community_network,
    network_of,
    read_original,
    text_encoder_of,
)

from tests import tiny_mvdream as tiny
from tests.teachers import ldm_reference


def meta(shapes: tiny.Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def question(sets: int = 2, views: int = 3, context: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    count = sets * views
    timesteps = torch.tensor([20, 700])[:sets].repeat_interleave(views)
    shapes = ((count, 4, 8, 8), (count, 5, context), (count, 16))
    noisy, text, cameras = (torch.randn(shape, generator=generator) for shape in shapes)
    return noisy, timesteps, text, cameras


def test_the_denoiser_computes_what_the_original_computes():
    tensors = tiny.random_tensors(tiny.unet_shapes(**tiny.TINY_UNET))
    network = network_of(tensors)
    noisy, timesteps, text, cameras = question()
    expected = ldm_reference.UNet(tensors)(noisy, timesteps, text, cameras, 3)
    with torch.no_grad():
        answer = network(noisy, timesteps, text, cameras, 3)
    assert expected.std() > 0.05
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


def test_the_text_model_computes_what_the_original_computes():
    tensors = tiny.random_tensors(tiny.text_shapes(**tiny.TINY_TEXT))
    text_encoder = text_encoder_of(tensors).eval()
    tokens = torch.tensor([[38, 5, 7, 1, 39, 0, 0, 0, 0, 0, 0, 0], [38, 2, 39, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    expected = ldm_reference.TextModel(tensors)(tokens)
    with torch.no_grad():
        answer = text_encoder(tokens).last_hidden_state
    assert expected.std() > 0.05
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


def test_the_autoencoder_has_each_tensor_in_its_place():
    tensors = tiny.random_tensors(tiny.vae_shapes(32, (1, 2), 1))
    weights = autoencoder_of(tensors).state_dict()
    same = {
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down_blocks.0.downsamplers.0.conv.bias": "encoder.down.0.downsample.conv.bias",
        "decoder.up_blocks.0.resnets.1.conv1.weight": "decoder.up.1.block.1.conv1.weight",  # coarse first
        "decoder.up_blocks.0.upsamplers.0.conv.weight": "decoder.up.1.upsample.conv.weight",
        "decoder.mid_block.resnets.1.norm2.weight": "decoder.mid.block_2.norm2.weight",
        "quant_conv.weight": "quant_conv.weight",
    }
    for new, old in same.items():
        assert torch.equal(weights[new], tensors[old])
    for new, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = f"encoder.mid_block.attentions.0.{new}.weight"
        assert torch.equal(weights[name], tensors[f"encoder.mid.attn_1.{old}.weight"][:, :, 0, 0])


# ----------------------------------------------------------------------------- full size


def test_the_published_denoiser_has_every_weight_of_stable_diffusion_2s_and_a_camera():
    from diffusers import UNet2DConditionModel

    shapes = tiny.unet_shapes(**tiny.FULL_UNET)
    network = network_of(meta(shapes))
    assert len(shapes) == len(network.state_dict()) == 690
    stable_diffusion_2 = {  # its unet/config.json
        "sample_size": 32, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True, "block_out_channels": (320, 640, 1280, 1280),
    }  # fmt: skip
    for key, value in stable_diffusion_2.items():
        assert network.unet.config[key] == value
    with torch.device("meta"):
        plain = UNet2DConditionModel(**stable_diffusion_2)
    own = {key: value.shape for key, value in network.unet.state_dict().items()}
    assert own == {key: value.shape for key, value in plain.state_dict().items()}
    assert network.camera_embedding[0].weight.shape == (1280, 16)
    assert network.camera_embedding[2].weight.shape == (1280, 1280)


def test_the_published_autoencoder_and_text_model_are_stable_diffusion_2s():
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    vae = autoencoder_of(meta(tiny.vae_shapes(**tiny.FULL_VAE)))
    with torch.device("meta"):
        plain = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
                                            num_attention_heads=16, vocab_size=49408))  # fmt: skip
    assert {k: v.shape for k, v in vae.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    config = text_config(meta(tiny.text_shapes(**tiny.FULL_TEXT)))
    with torch.device("meta"):
        own = CLIPTextModel(CLIPTextConfig(**config))
    assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in text.state_dict().items()}
    assert (config["num_attention_heads"], config["hidden_act"]) == (16, "gelu")


def test_convolutional_projections_are_stable_diffusion_1s():
    config = unet_config(meta(tiny.unet_shapes(320, (1, 2, 4, 4), 2, 768, linear=False)))
    assert (config["use_linear_projection"], config["cross_attention_dim"]) == (False, 768)
    assert config["attention_head_dim"] == (8, 8, 8, 8)
    assert vae_config(meta(tiny.vae_shapes(**tiny.FULL_VAE)))["block_out_channels"] == (128, 256, 512, 512)


# ------------------------------------------------------------------- files and folders


@pytest.fixture(scope="module")
def converted(mvdream_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "mvdream"
    assert convert(mvdream_file, folder) == ["unet", "vae", "text_encoder", "scheduler"]
    return folder


def answers(name: str) -> tuple[torch.Tensor, ...]:
    from turboprop.teachers.contract import Cameras

    teacher = load_teacher(name)
    noisy, timesteps, text, _ = question(views=4)
    c2w = torch.eye(4).repeat(8, 1, 1)
    c2w[:, :3, 3] = torch.randn(8, 3, generator=torch.Generator().manual_seed(8))
    angles = torch.zeros(8)
    condition = teacher.condition(text, Cameras(angles, angles, angles, c2w, angles + 0.7), 4)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(9)) * 2 - 1
    encoded = teacher.encode(images, torch.zeros(2, 4, 32, 32))
    assert (teacher.image_size, teacher.latent_size, teacher.num_timesteps) == (64, 32, 1000)
    assert teacher.prediction_type == "epsilon"
    return teacher.predict_noise(noisy, timesteps, condition), encoded, teacher.decode(encoded), teacher.alphas_cumprod


def test_all_layouts_make_the_same_teacher(mvdream_file, converted, community_folder):
    first = answers(str(mvdream_file))
    for folder in (converted, community_folder):
        for answer, expected in zip(answers(str(folder)), first):
            assert torch.equal(answer, expected)


def test_a_community_folder_knows_its_heads(community_folder, tmp_path):
    folder = shutil.copytree(community_folder, tmp_path / "folder")
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_head_channels": 16, "image_size": 8}))
    network = community_network(folder)
    assert network.unet.config.attention_head_dim == (4, 8)
    assert network.unet.config.sample_size == 8
    path.write_text(json.dumps({**config, "num_head_channels": -1, "num_heads": 2}))
    assert community_network(folder).unet.config.attention_head_dim == (2, 2)
    path.write_text(json.dumps({**config, "ip_dim": 16}))
    with pytest.raises(ValueError, match="ImageDream's .ip_dim 16., expected MVDream's"):
        community_network(folder)


def test_a_converted_folder_takes_a_tokenizer_and_half_precision(mvdream_file, tiny_sd_folder, converted, tmp_path):
    folder = tmp_path / "mvdream"
    convert(mvdream_file, folder, half=True, tokenizer=str(tiny_sd_folder))
    vocabulary = [json.loads((path / "tokenizer" / "vocab.json").read_text()) for path in (folder, tiny_sd_folder)]
    assert vocabulary[0] == vocabulary[1]
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (folder / file).stat().st_size < 0.51 * (converted / file).stat().st_size
    network = load_teacher(str(folder)).network
    whole = load_teacher(str(converted)).network.state_dict()
    for key, value in network.state_dict().items():
        assert torch.equal(value, whole[key].half().float())


def test_a_conversion_that_fails_halfway_leaves_nothing(mvdream_file, tmp_path, monkeypatch):
    def full_disk(self, folder, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DDIMScheduler, "save_pretrained", full_disk)  # the last part
    (tmp_path / "mvdream").mkdir()  # an empty folder may be there already
    for folder in (tmp_path / "mvdream", tmp_path / "new"):
        with pytest.raises(OSError, match="No space left"):
            convert(mvdream_file, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mvdream"] and not any((tmp_path / "mvdream").iterdir())
    monkeypatch.undo()
    convert(mvdream_file, tmp_path / "mvdream")
    assert [path.name for path in tmp_path.iterdir()] == ["mvdream"]


BROKEN = {
    "a tensor is missing": (
        lambda t: t.pop("model.diffusion_model.middle_block.0.in_layers.2.bias"),
        "not the denoiser of MVDream: it lacks what becomes unet.mid_block.resnets.0.conv1.bias$",
    ),
    "no camera": (
        lambda t: [t.pop(key) for key in list(t) if "camera_embed" in key],
        "it lacks what becomes camera_embedding.0.weight, camera_embedding.0.bias",
    ),
    "a tensor is left over": (
        lambda t: t.update({"model.diffusion_model.input_blocks.1.7.extra": torch.zeros(2)}),
        "it has input_blocks.1.7.extra beyond it",
    ),
    "a shape is wrong": (
        lambda t: t.update({"first_stage_model.decoder.conv_out.bias": torch.zeros(7)}),
        r"not the autoencoder of MVDream: decoder.conv_out.bias: expected shape \[3\], got \[7\]",
    ),
    "a part is missing": (
        lambda t: [t.pop(key) for key in list(t) if key.startswith("model.")],
        "not the denoiser of a latent diffusion model: it lacks input_blocks",
    ),
    "something else is in it": (lambda t: t.update({"optimizer.step": torch.zeros(1)}), "unknown tensors optimizer"),
    "another schedule": (
        lambda t: t.update({"alphas_cumprod": torch.linspace(1, 0, 1000)}),
        "alphas_cumprod: expected the noise schedule of Stable Diffusion, got another",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_file_is_named(name, tmp_path):
    change, message = BROKEN[name]
    tensors = tiny.original_tensors()
    change(tensors)
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        load_teacher(str(tmp_path / "model.pt"))


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_file_that_would_run_something_is_refused(tmp_path, capsys):
    torch.save({**tiny.original_tensors(), "model.diffusion_model.x": Harmful()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a file of tensors alone"):
        load_teacher(str(tmp_path / "model.pt"))
    assert capsys.readouterr().out == ""


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="pretrained_model_name_or_path: no file .*nowhere.pt"):
        load_teacher(str(tmp_path / "nowhere.pt"))


def test_safetensors_and_wrapped_files_load_too(mvdream_file, tmp_path):
    from safetensors.torch import save_file

    tensors = tiny.original_tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    expected = read_original(mvdream_file).unet
    for name in ("model.safetensors", "model.ckpt"):
        unet = read_original(tmp_path / name).unet
        assert unet.keys() == expected.keys() and all(torch.equal(unet[key], expected[key]) for key in unet)


def test_the_command(mvdream_file, tmp_path, capsys):
    output = tmp_path / "out"
    assert main([str(mvdream_file), "--output", str(output)]) == 0
    assert f"wrote unet, vae, text_encoder, scheduler to {output}" in capsys.readouterr().out
    assert main([str(mvdream_file), "--output", str(output)]) == 2
    assert "--output" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing.pt"), "--output", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
