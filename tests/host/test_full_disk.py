"""A disk that is full is one line: what could not be written, at which step, and which checkpoint is whole."""

import errno
import os
import re
import subprocess
import sys

import pytest
import torch

from tests.host.launches import PLUGINS, ROOT, TINY_CONFIG, can_mount
from threestudio.utils.atomic_checkpoint import write_atomically
from threestudio.utils.full_disk import full_disk_error

FULL = os.strerror(errno.ENOSPC)


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


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EFBIG])
def test_a_folder_that_takes_no_file_is_the_disks_fault_and_other_files_are_not(tmp_path, code):
    own, other = (
        OSError(code, os.strerror(code), str(path / "a.png")) for path in (tmp_path / "save", tmp_path.parent)
    )
    assert full_disk_error(own, str(tmp_path)) is own
    assert (full_disk_error(other, str(tmp_path)) is None) == (code != errno.EFBIG)


def test_a_folder_that_is_gone(tmp_path):
    lost = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(tmp_path / "trial/save/a.png"))
    assert full_disk_error(lost, str(tmp_path / "trial")) is lost
    (tmp_path / "trial").mkdir()
    assert full_disk_error(lost, str(tmp_path / "trial")) is None  # then a file alone is missing: a bug


def test_a_limit_of_a_files_size_is_one_line(start_launch, tmp_path):
    """ulimit -f counts blocks of 1024 bytes in bash; a checkpoint has some 50 kB."""
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); "
    code += f"sys.path.insert(0, {str(ROOT)!r}); import launch; "
    code += f"sys.exit(launch.main(['--config', {TINY_CONFIG!r}, '--train', 'system.field.n_neurons=512', "
    code += "'trainer.max_steps=8']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(rf"^error: {os.strerror(errno.EFBIG)}: \S+, at step \d+; ", done.stderr, re.MULTILINE)


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
