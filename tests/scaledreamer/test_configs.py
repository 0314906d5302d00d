"""Configs in ScaleDreamer's own layout and keys, at tiny size, through launch.py to meshes."""

import json

import pytest
from omegaconf import OmegaConf

from launch import main
from tests.main_job import TEXT_DIM, column

GRID = {"otype": "HashGrid", "n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 8, "base_resolution": 4,
        "per_level_scale": 1.5}  # fmt: skip
CAMERAS = {
    "width": 8, "height": 8, "fovy_range": [40, 70], "camera_perturb": 0.0, "center_perturb": 0.0, "up_perturb": 0.0,
    "eval_camera_distance": 1.5, "eval_fovy_deg": 70.0, "n_val_views": 2, "n_test_views": 2, "eval_width": 8,
    "eval_height": 8,
}  # fmt: skip
FIELD = {
    "radius": 2.0, "normal_type": "finite_difference", "finite_difference_normal_eps": 0.01, "sdf_bias": "sphere",
    "sdf_bias_params": 0.8,
}  # fmt: skip
SPACES = {
    "conv": {
        "geometry_type": "3DConv-net",
        "geometry": {
            **FIELD, "activation": "none",
            "space_generator_config": {"z_dim": 4, "w_dim": 8, "c_dim": TEXT_DIM, "num_layers": 2, "img_resolution": 4,
                                       "img_channels": 4, "channel_multiplier": 1},
        },
        "background_type": "neural-environment-map-background",
        "background": {"color_activation": "sigmoid", "random_aug": True},
    },
    "hyper": {
        "geometry_type": "Hyper-iNGP",
        "geometry": {
            **FIELD, "shape_init": "sphere", "shape_init_params": 0.5, "pos_encoding_config": GRID,
            "hypernet_config": {"c_dim": TEXT_DIM, "out_dims": {"sdf_weights": [8, 1], "feature_weights": [8, 3]},
                                "spectral_norm": False, "n_neurons": 8, "n_hidden_layers": 1},
        },
        "background_type": "multiprompt-neural-hashgrid-environment-map-background",
        "background": {"color_activation": "sigmoid", "random_aug": True, "random_aug_prob": 0.2,
                       "pos_encoding_config": GRID, "hypernet_config": {"c_dim": TEXT_DIM}},
    },
    "triplane": {
        "geometry_type": "Triplane-transformer-sdf",
        "geometry": {
            **FIELD,
            "space_generator_config": {"inner_dim": 12, "condition_dim": TEXT_DIM, "triplane_low_res": 4,
                                       "triplane_high_res": 8, "triplane_dim": 3, "num_layers": 1, "num_heads": 2,
                                       "mlp_ratio": 4, "local_text": True},
        },
        "background_type": "neural-environment-map-background",
        "background": {"color_activation": "sigmoid-mipnerf", "random_aug": False},
    },
}  # fmt: skip
LOSS = {"lambda_asd": 1.0, "lambda_orient": 0.0, "lambda_sparsity": 20, "lambda_opaque": [1, 0, 10.0, 3],
        "lambda_z_variance": 0.0}  # fmt: skip
TRAINER = {"max_steps": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "val_check_interval": 2,
           "enable_progress_bar": False, "precision": 32}  # fmt: skip
CHECKPOINT = {"save_last": True, "save_top_k": -1, "every_n_train_steps": "${trainer.val_check_interval}"}
LOGGERS = {"wandb": {"enable": False, "project": "threestudio", "name": "None"}}
STEPS = {"guidance_scale": 7.5, "plus_ratio": 0.1, "plus_random": True, "min_step_percent": [0, 0.5, 0.02, 2],
         "max_step_percent": [0, 0.98, 0.5, 2]}  # fmt: skip


def guidance(multi_view: bool, folder: str, ckpt: str) -> dict:
    if multi_view:
        keys = {"model_name": "sd-v2.1-base-4view", "ckpt_path": ckpt, **STEPS}
        return {"guidance_type": "mvdream-asynchronous-score-distillation-guidance", "guidance": keys}
    keys = {"pretrained_model_name_or_path": folder, **STEPS, "guidance_perp_neg": -0.5}
    return {"guidance_type": "stable-diffusion-asynchronous-score-distillation-guidance", "guidance": keys}


def generator_config(kind: str, folder: str, ckpt: str) -> dict:
    multi_view = kind == "triplane"
    data = {**CAMERAS, "batch_size": 1, "camera_distance_range": [1.0, 1.5], "elevation_range": [-10, 45]}
    if multi_view:
        data |= {"batch_size": 4, "n_view": 4, "camera_distance_range": [0.8, 1.0]}
    noise = {"conv": "${system.geometry.space_generator_config.z_dim}", "hyper": 0, "triplane": 1}[kind]
    words = {"use_local_text_embeddings": True} if multi_view else {"use_perp_neg": True, "front_threshold": 30.0}
    optimizer = {"name": "Adan", "args": {"betas": [0.98, 0.92, 0.99], "eps": 1e-15}}
    return {
        "name": kind,
        "tag": "${rmspace:${system.prompt_processor.prompt_library},_}",
        "exp_root_dir": "outputs",
        "seed": 0,
        "data_type": f"multiprompt-{'multiview-' if multi_view else ''}camera-datamodule",
        "data": {
            **data, "prompt_library": "${system.prompt_processor.prompt_library}", "dim_gaussian": noise,
        },
        "system_type": "multiprompt-radience-field-generator-system",
        "system": {
            "stage": "coarse", "initialize_shape": False, "visualize_samples": False, "validation_via_video": True,
            **SPACES[kind],
            "material_type": "no-material",
            "material": {"n_output_dims": 3, "color_activation": "sigmoid", "requires_normal": True},
            "renderer_type": "generative-space-volsdf-volume-renderer",
            "renderer": {
                "radius": "${system.geometry.radius}", "use_volsdf": True, "trainable_variance": False,
                "learned_variance_init": 0.340119, "randomized": False, "estimator": "importance",
                "num_samples_per_ray": 4, "num_samples_per_ray_importance": 8, "near_plane": 0.1, "far_plane": 4.0,
                "train_chunk_size": 0,
            },
            "prompt_processor_type": "stable-diffusion-multi-prompt-processor",
            "prompt_processor": {"pretrained_model_name_or_path": folder, "prompt_library": "???", **words},
            **guidance(multi_view, folder, ckpt),
            "loggers": LOGGERS,
            "loss": {**LOSS, "lambda_eikonal": [1, 100.0, 1.0, 2]},
            "optimizer": {**optimizer, "params": {"geometry": {"lr": 2e-4}, "background": {"lr": 2e-4}}},
            "exporter": {"resolution": 16},
        },
        "trainer": {**TRAINER, "strategy": "ddp" if multi_view else "auto", "accumulate_grad_batches": 1},
        "checkpoint": CHECKPOINT,
    }  # fmt: skip


def single_config(kind: str, folder: str, ckpt: str) -> dict:
    multi_view = kind == "nerf-mv"
    data = {**CAMERAS, "batch_size": [1, 1], "width": [8, 12], "height": [8, 12], "resolution_milestones": [1]}
    if multi_view:
        data |= {"batch_size": [4, 4], "n_view": 4, "camera_distance_range": [0.8, 1.0]}
    return {
        "name": kind,
        "tag": "${rmspace:${system.prompt_processor.prompt},_}",
        "exp_root_dir": "outputs",
        "seed": 10,
        "data_type": "mvdream-random-multiview-camera-datamodule" if multi_view else "random-camera-datamodule",
        "data": data,
        "system_type": "scaledreamer-system",
        "system": {
            "visualize_samples": False, "validation_via_video": True,
            "geometry_type": "implicit-volume",
            "geometry": {
                "radius": 1.0, "normal_type": "finite_difference", "density_bias": "blob_magic3d",
                "density_activation": "softplus", "density_blob_scale": 10.0, "density_blob_std": 0.5,
                "pos_encoding_config": GRID,
            },
            "material_type": "no-material",
            "material": {"n_output_dims": 3, "color_activation": "sigmoid", "requires_normal": True},
            "background_type": "neural-environment-map-background",
            "background": {"color_activation": "sigmoid", "random_aug": True, "random_aug_prob": 0.5,
                           "dir_encoding_config": GRID},
            "renderer_type": "nerf-volume-renderer",
            "renderer": {"radius": "${system.geometry.radius}", "num_samples_per_ray": 16},
            "prompt_processor_type": "stable-diffusion-prompt-processor",
            "prompt_processor": {"pretrained_model_name_or_path": folder, "prompt": "???", "front_threshold": 30.0,
                                 **({} if multi_view else {"use_perp_neg": True})},
            **guidance(multi_view, folder, ckpt),
            "loggers": LOGGERS,
            "loss": {**LOSS, "lambda_orient": [0, 1.0, 1.0, 2]},
            "optimizer": {
                "name": "AdamW", "args": {"betas": [0.0, 0.99], "eps": 1e-15},
                "params": {
                    "geometry.encoding": {"lr": 0.01}, "geometry.density_network": {"lr": 0.001},
                    "geometry.feature_network": {"lr": 0.001}, "background": {"lr": 0.001},
                },
            },
        },
        "trainer": TRAINER,
        "checkpoint": CHECKPOINT,
    }  # fmt: skip


@pytest.fixture()
def launch(tmp_path, monkeypatch, tiny_sd_folder, tiny_mv_folder, text_cache):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "libraries"
    folder.mkdir()
    prompts = {"train": ["a red car", "a blue chair"], "val": ["a red car"], "test": ["a red car"]}
    (folder / "two.json").write_text(json.dumps(prompts))

    def run(kind, *more):
        single = kind.startswith("nerf")
        config = (single_config if single else generator_config)(kind, str(tiny_sd_folder), str(tiny_mv_folder))
        OmegaConf.save(OmegaConf.create(config), tmp_path / f"{kind}.yaml")
        given = ["system.prompt_processor.prompt='a red car'"] if single else [
            "system.prompt_processor.prompt_library=two", f"data.prompt_library_dir={folder}",
            f"system.prompt_processor.prompt_library_dir={folder}",
        ]  # fmt: skip
        code = main(["--config", str(tmp_path / f"{kind}.yaml"), "--train", "use_timestamp=false", *given, *more])
        return code, tmp_path / "outputs" / kind / ("a_red_car" if single else "two")

    return run


@pytest.mark.parametrize("kind", [*SPACES, "nerf-sd", "nerf-mv"])
def test_a_config_of_scaledreamers_keys_trains(kind, launch, capsys):
    code, trial = launch(kind)
    assert code == 0, capsys.readouterr().err
    assert len(column(trial, "train/loss_asd")) == 2
    if not kind.startswith("nerf"):
        assert list(trial.glob("save/it2-export/*/model.glb"))
        assert list(trial.glob("save/it2-test/*/*.png"))


def test_an_unseen_prompt_in_the_test_splits_place(launch, capsys):
    new = "a green boat"
    code, trial = launch("hyper", f"data.eval_prompt={new}", f"system.prompt_processor.eval_prompt={new}")
    assert code == 0, capsys.readouterr().err
    assert [path.name for path in (trial / "save/it2-export").iterdir()] == ["a_green_boat"]


@pytest.mark.parametrize(
    "given, message",
    [
        ("system.stage=geometry", "system.stage: expected coarse, got 'geometry'"),
        ("system.loss.lambda_orient=1", "system.loss.lambda_orient: not available for generators, expected 0"),
        ("data.target_prompt=x", "data.target_prompt: pictures between two prompts are not available"),
        ("system.prompt_processor.use_prompt_debiasing=true", "use_prompt_debiasing: not available for many prompts"),
    ],
)
def test_what_is_not_available_is_one_line(given, message, launch, capsys):
    code, _ = launch("hyper", given)
    assert code == 2 and message in capsys.readouterr().err
