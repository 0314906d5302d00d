"""configs/dreamfusion-sd.yaml as it is shipped, but for the model, the prompt and the sizes: trains on any machine."""

from pathlib import Path

import torch

CONFIG = str(Path(__file__).resolve().parents[3] / "configs" / "dreamfusion-sd.yaml")


def test_trains_and_exports(launch_here, tmp_path, tiny_sd_folder):
    small = [
        "data.height=8", "data.width=8", "data.eval_height=8", "data.eval_width=8", "data.n_test_views=2",
        "trainer.max_steps=2", "use_timestamp=false", "tag=trial",
        "system.renderer.num_samples_per_ray=32", "system.geometry.pos_encoding_config.log2_hashmap_size=10",
        "system.geometry.isosurface_resolution=12", "system.exporter.fmt=glb", "system.exporter.save_uv=false",
        "system.geometry.isosurface_threshold=auto", "system.prompt_processor.prompt=a red car",
        f"system.prompt_processor.pretrained_model_name_or_path={tiny_sd_folder}",
        f"system.guidance.pretrained_model_name_or_path={tiny_sd_folder}",
    ]  # fmt: skip
    assert launch_here("--train", *small, config=CONFIG) == 0
    trial = tmp_path / "outputs" / "dreamfusion-sd" / "trial"
    checkpoint = trial / "ckpts" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert {
        "geometry.encoding.encoding.encoding.params",
        "renderer.estimator.occs",
        "renderer.estimator.binaries",
    } <= set(state)
    assert all(torch.isfinite(v).all() for v in state.values())
    assert launch_here("--export", f"resume={checkpoint}", *small, config=CONFIG) == 0
    assert (trial / "save" / "it2-export" / "model.glb").stat().st_size > 1000
