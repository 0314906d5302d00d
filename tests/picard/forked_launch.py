"""launch.py in several processes: `python -m tests.picard.forked_launch PROCESSES PORT ARGUMENTS...`"""

import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from launch import main
from threestudio.utils.extensions import load_extensions


def rank_of_a_launch(rank: int, size: int, port: int, arguments: list[str]) -> None:
    """One process, with the variables by which torchrun makes it one of a run."""
    torch.set_num_threads(1)
    own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    run = {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0}
    os.environ.update({key: str(value) for key, value in {**own, **common, **run}.items()})
    assert main(arguments) == 0
    dist.destroy_process_group()


if __name__ == "__main__":
    load_extensions()
    # What the tests register, so that the launches' configs may name it.
    import tests.picard.nan_guidance
    import tests.picard.pulled_background  # noqa: F401

    processes, port, *given = sys.argv[1:]
    mp.start_processes(rank_of_a_launch, (int(processes), int(port), given), nprocs=int(processes), start_method="fork")
