"""A plugin for runs that fail: the guidance of pictures, in which one rank has something happen to it at one step."""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import threestudio
from threestudio.utils.misc import get_rank

PicturesGuidance = threestudio.find("turboprop-pictures-guidance")


@threestudio.register("test-failing-guidance")
class FailingGuidance(PicturesGuidance):
    @dataclass
    class Config(PicturesGuidance.Config):
        fault: str = ""  # kill, kill_saving, stop, error or ""
        at_step: int = 0
        on_rank: int = 0

    failed = False

    def update_step(self, epoch, global_step, on_load_weights=False):
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        here = get_rank() == self.cfg.on_rank and global_step >= self.cfg.at_step  # or the rank's next slot
        self.fails = bool(self.cfg.fault) and first and here and not self.failed

    def __call__(self, rgb, *args, **kwargs):
        if self.fails:
            self.failed = True
            print(f"fault {self.cfg.fault} of {os.getpid()} at {time.time()}", file=sys.stderr, flush=True)
            if self.cfg.fault == "error":
                raise ValueError("a fault on purpose")
            if self.cfg.fault == "kill_saving":
                threading.Thread(target=kill_in_the_next_save, daemon=True).start()
            else:
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[self.cfg.fault])
        return super().__call__(rgb, *args, **kwargs)


def kill_in_the_next_save():
    """Once a part of a checkpoint is written."""
    while not any(part.stat().st_size > 0 for part in Path.cwd().glob("fit/run/ckpts/.last.ckpt.*.part")):
        time.sleep(0.0002)
    os.kill(os.getpid(), signal.SIGKILL)
