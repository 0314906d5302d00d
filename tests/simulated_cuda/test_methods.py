"""threestudio's methods on a simulated CUDA device: each trains, tests and exports through the command line."""

from pathlib import Path
from typing import Iterator

import pytest

from tests.simulated_cuda.runtime import simulated_cuda
from tests.test_configs import METHODS, ROOT, Runs, models  # noqa: F401


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, models) -> Iterator[Runs]:  # noqa: F811
    root = tmp_path_factory.mktemp("cuda_runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("TURBOPROP_CACHE", str(root / "cache"))
        yield Runs(root / "outputs", models)


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_and_exports(name, runs):
    with simulated_cuda() as seen:
        trial = runs.trial(name)  # after those that it starts from
        assert runs.launch(name, "--export", f"resume={trial}/ckpts/last.ckpt") == 0
    assert list((trial / "save/it2-export").glob("model.*"))
    assert seen.operations > 1000 and seen.kernels
