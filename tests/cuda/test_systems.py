"""The systems of this project on a CUDA device: each config trains, validates, tests and exports."""

import pytest

from tests.config_runs import CONFIGS, METHODS

# It has no scene to export, and ends with diffusers' writer, which reads memory that a simulated tensor has not.
MODEL = "train-novelview"
OURS = [path.stem for path in CONFIGS if path.parent.name == "configs" and path.stem not in (*METHODS, MODEL)]
# Generators have sixteen prompts, and a mesh of each.
GENERATORS = ("asd-3dconv", "asd-hyper-ingp", "asd-triplane")
SMALLER = ["trainer.limit_predict_batches=1", "system.exporter.resolution=24", "data.batch_size=2"]


@pytest.mark.parametrize("name", OURS)
def test_it_trains_and_exports(name, launch, on_cuda):
    more = SMALLER if name in GENERATORS else []
    trial = launch(name, "--train", *more)
    launch(name, "--export", f"resume={trial}/ckpts/last.ckpt", *more)
    assert list((trial / "save").glob("it2-test*"))
    assert list((trial / "save").glob("it2-export/*"))
    assert on_cuda.was_used()


def test_the_novel_view_model_trains(launch, on_cuda):
    trial = launch(MODEL, "--train", "trainer.limit_test_batches=0")
    assert (trial / "ckpts/last.ckpt").is_file()
    assert on_cuda.was_used()
