"""A disk that is full is one line: what could not be written, at which step, and which checkpoint is whole."""

import errno
import os
import re
import subprocess
import sys

import pytest
import torch

from tests.host.launches import PLUGINS, ROOT, TINY_CONFIG
from threestudio.utils.atomic_checkpoint import write_atomically
from threestudio.utils.full_disk import full_disk_error

FULL = os.strerror(errno.ENOSPC)


def can_mount() -> bool:
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"], capture_output=True
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


def test_the_cause_is_found_under_what_came_of_it(tmp_path):
    try:
        try:
            raise OSError(errno.ENOSPC, FULL, "/data/last.ckpt")
        except OSError as error:
            raise RuntimeError("PytorchStreamWriter failed writing file") from error
    except RuntimeError:
        try:
            raise ValueError("and in cleaning up")
        except ValueError as last:
            found = full_disk_error(last, str(tmp_path))
    assert found.errno == errno.ENOSPC and found.filename == "/data/last.ckpt"
    assert full_disk_error(RuntimeError("a bug"), str(tmp_path)) is None
    assert full_disk_error(OSError(errno.EACCES, "Permission denied"), str(tmp_path)) is None


def test_a_checkpoint_that_does_not_fit_names_its_path_and_leaves_the_old_one(tmp_path):
    """/dev/full is always full; torch.save makes another error of that."""
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    with open("/dev/full", "wb", buffering=0) as full:

        def save(file):
            class Full:
                def write(self, data):
                    file.write(data)  # what the disk still takes
                    return full.write(data)

                def flush(self):
                    file.flush()

            torch.save({"weights": torch.zeros(10_000)}, Full())

        with pytest.raises((OSError, RuntimeError)) as caught:
            write_atomically(str(path), save)
    assert full_disk_error(caught.value, str(tmp_path)).errno == errno.ENOSPC
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small disk in a namespace of its own")
@pytest.mark.parametrize("kilobytes", [120, 400])
def test_a_run_whose_disk_is_full_says_so_in_one_line(tmp_path, kilobytes):
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom/tiny_field.py").write_bytes((PLUGINS / "tiny_field.py").read_bytes())
    (tmp_path / "outputs").mkdir()
    # checkpoints of some 50 kB; the code's snapshot is left out where it does not fit, as it always was
    run = [
        sys.executable,
        str(ROOT / "launch.py"),
        "--config",
        TINY_CONFIG,
        "--train",
        "checkpoint.every_n_train_steps=1",
    ]
    run += ["system.field.n_neurons=512", "trainer.max_steps=200", "trainer.val_check_interval=1000"]
    command = f'mount -t tmpfs -o size={kilobytes}k tmpfs outputs && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, "sh", *run],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.match(rf"error: {FULL}: outputs/\S+, at step \d+; ", line), line
    assert re.search(r"\.ckpt is whole, of step \d+$", line) or "no checkpoint is in outputs/tiny/run/ckpts" in line
