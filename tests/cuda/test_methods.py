"""threestudio's methods on a CUDA device: each trains, tests and exports through the command line."""

from collections.abc import Iterator

import pytest

from tests.config_runs import METHODS, ROOT, Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, models) -> Iterator[dict[bool, Runs]]:
    """Those of the simulated device, and those of the real one: later stages start from their own kind."""
    root = tmp_path_factory.mktemp("cuda_runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("TURBOPROP_CACHE", str(root / "cache"))
        yield {simulated: Runs(root / str(simulated), models) for simulated in (True, False)}


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_and_exports(name, runs, on_cuda):
    own = runs[on_cuda.is_simulated]
    trial = own.trial(name)  # after those that it starts from
    assert own.launch(name, "--export", f"resume={trial}/ckpts/last.ckpt") == 0
    assert list((trial / "save/it2-export").glob("model.*"))
    assert on_cuda.was_used()
