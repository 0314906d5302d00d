"""What all tests share: the bundled plugin is loaded as the launcher loads it, and skips."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from threestudio.utils.extensions import load_extensions  # noqa: E402

load_extensions()

from tests import cuda_visibility  # noqa: E402
from tests.config_runs import models, runs  # noqa: E402,F401
from tests.main_job import launch_job  # noqa: E402,F401
from tests.tiny_deep_floyd import tiny_if_folder  # noqa: E402,F401
from tests.tiny_multi_view import tiny_mv_folder  # noqa: E402,F401
from tests.tiny_mvdream import community_folder, mvdream_file  # noqa: E402,F401
from tests.tiny_novelview import (  # noqa: E402,F401
    tiny_dino_folder,
    tiny_renders,
    tiny_zero123_folder,
    tiny_zero123_unified_folder,
)
from tests.tiny_pictures import ball_picture  # noqa: E402,F401
from tests.tiny_stable_diffusion import text_cache, tiny_sd_folder, tiny_sd_v_folder  # noqa: E402,F401


def pytest_sessionstart(session: pytest.Session) -> None:
    cuda_visibility.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if cuda_visibility.HAS_CUDA:
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # not item.keywords, which have folders' names too
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with cuda_visibility.cuda_visible(item.get_closest_marker("gpu") is not None):
        return (yield)
