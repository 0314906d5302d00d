"""Tiny novel-view models in the layouts of published files: pictures of 16 pixels, latents [4, 8, 8]."""

import json
from pathlib import Path

import pytest
import torch

CROSS_ATTENTION = 16
CLIP_SIZE, CLIP_PATCH = 28, 14
DOWN_SAMPLES = 2  # pixels along a latent's side


def tiny_unet(in_channels: int = 8):
    """Two levels: 8x8 without cross-attention, 4x4 with it."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CROSS_ATTENTION,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def tiny_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )


def tiny_clip(projection: int = CROSS_ATTENTION):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            projection_dim=projection,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=CLIP_SIZE,
            patch_size=CLIP_PATCH,
        )
    )


def tiny_dino(kind: str = "dinov2"):
    """Four layers of width 24: DINOv2 with and without registers at 28 pixels, DINOv3 at 32."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        DINOv3ViTConfig,
        DINOv3ViTModel,
    )

    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    if kind == "dinov2":
        return Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **sizes))
    if kind == "dinov2_with_registers":
        return Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(image_size=28, patch_size=14, num_register_tokens=4, **sizes)
        )
    if kind == "dinov3_vit":
        return DINOv3ViTModel(
            DINOv3ViTConfig(image_size=32, patch_size=16, intermediate_size=48, num_register_tokens=4, **sizes)
        )
    raise ValueError(kind)


def stable_diffusion_scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def write_tiny_renders(root: Path, objects: int = 6, views: int = 3, size: int = 16) -> Path:
    """Discs of random colours in zero-1-to-3's layout, seen by random cameras."""
    import numpy as np
    from PIL import Image
    from turboprop.novelview.camera_pose import world_to_camera_matrices
    from turboprop.world.cameras import orbit_c2w

    generator = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size - 0.5
    names = [f"object-{number}" for number in range(objects)]
    for name in names:
        (root / name).mkdir(parents=True)
        for view in range(views):
            picture = np.zeros((size, size, 4), np.uint8)
            picture[x**2 + y**2 < generator.uniform(0.03, 0.2)] = [*generator.integers(0, 256, 3), 255]
            Image.fromarray(picture, "RGBA").save(root / name / f"{view:03d}.png")
            orbit = (torch.tensor([generator.uniform(*ends)]) for ends in ((-30, 80), (-180, 180), (1.5, 2.2)))
            np.save(root / name / f"{view:03d}.npy", world_to_camera_matrices(orbit_c2w(*orbit))[0].numpy())
    (root / "valid_paths.json").write_text(json.dumps(names))
    return root


def write_tiny_zero123(folder: Path, projection: str = "cc_projection", seed: int = 0) -> Path:
    """zero123 as the hub has it: `cc_projection` (kxic's layout) or `clip_camera_projection` (bennyguo's)."""
    from safetensors.torch import save_file

    state = torch.get_rng_state()
    torch.manual_seed(seed)
    parts = {"unet": tiny_unet(), "vae": tiny_vae(), "image_encoder": tiny_clip()}
    linear = torch.nn.Linear(CROSS_ATTENTION + 4, CROSS_ATTENTION)
    torch.set_rng_state(state)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    stable_diffusion_scheduler().save_pretrained(folder / "scheduler")
    (folder / projection).mkdir()
    # kxic's CCProjection does not write its widths into its config
    own, config = {
        "cc_projection": ("projection", {"_class_name": "CCProjection"}),
        "clip_camera_projection": (
            "proj",
            {"_class_name": "CLIPCameraProjection", "embedding_dim": CROSS_ATTENTION, "additional_embeddings": 4},
        ),
    }[projection]
    (folder / projection / "config.json").write_text(json.dumps(config))
    tensors = {f"{own}.{key}": value.detach() for key, value in linear.state_dict().items()}
    save_file(tensors, folder / projection / "diffusion_pytorch_model.safetensors")
    index = {
        "_class_name": {"cc_projection": "Zero1to3StableDiffusionPipeline"}.get(projection, "Zero123Pipeline"),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        projection: ["zero123", config["_class_name"]],
        "safety_checker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def tiny_zero123_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """zero123 in kxic's layout."""
    return write_tiny_zero123(tmp_path_factory.mktemp("models") / "tiny-zero123")


@pytest.fixture(scope="session")
def tiny_zero123_unified_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny weights in bennyguo's layout."""
    folder = tmp_path_factory.mktemp("models") / "tiny-zero123-unified"
    return write_tiny_zero123(folder, projection="clip_camera_projection")


@pytest.fixture(scope="session")
def tiny_renders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six objects of three views, 16 pixels."""
    return write_tiny_renders(tmp_path_factory.mktemp("renders") / "root")


@pytest.fixture(scope="session")
def tiny_dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 with registers."""
    folder = tmp_path_factory.mktemp("models") / "tiny-dino"
    torch.manual_seed(5)
    tiny_dino("dinov2_with_registers").save_pretrained(folder)
    return folder
