"""Heartbeats of ranks: one that hangs or is cut off ends the run by name, instead of a wait without end.

A process that is killed or fails is torchrun's to name, end and restart. A rank that hangs is nobody's: it is as silent
in a collective as one that computes for minutes, and a timeout of collectives (NCCL's watchdog, gloo's) ends both. So
every rank beats: a thread counts up in the process group's own store (torch.distributed's), whatever the main thread
is at, and listens to the beats of the others. A rank whose beats stop is dead; a slow one goes on beating.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from typing import Dict, List, NamedTuple

import torch.distributed as dist

BEAT = 0.5  # seconds between two beats
END = 5.0  # seconds for the main thread to end by itself, once a rank is dead
STORE = -1  # in place of a rank: the store, where it is torchrun's own


class Heartbeat(NamedTuple):
    """The last beat that was heard of a rank."""

    at: float  # when it was heard, by this rank's clock, seconds
    count: int
    step: int
    process: str
    finished: bool  # its work was done


class RankWatch:
    """Beats for this rank and listens to the others of the default process group, from `start` to `stop`."""

    def __init__(self, dead_after: float) -> None:  # seconds without a beat
        self.dead_after = dead_after
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.step = 0  # that this rank is at, for messages
        self._process = f"process {os.getpid()} on {socket.gethostname()}"
        self._heard: Dict[int, Heartbeat] = {}
        self._listened = time.monotonic()
        self._store_failed = False
        self._beats = 0
        self._stopping = threading.Event()
        self._threads: List[threading.Thread] = []
        # A connection of its own: others of this process may wait for a key, and would hold up the beats.
        self._store = dist.group.WORLD.get_group_store().clone()

    def start(self) -> None:
        for work in (self._beat_and_listen, self._end_where_a_rank_is_dead):
            thread = threading.Thread(target=work, daemon=True, name=f"picard{work.__name__}")
            thread.start()
            self._threads.append(thread)

    def stop(self, finished: bool) -> None:
        """No more beats. With `finished` this rank's work is done, and the others do not miss it."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=2 * BEAT)
        if finished and not any(thread.is_alive() for thread in self._threads):  # else the store does not answer
            self._tell(finished=True)

    def dead(self) -> Dict[int, str]:
        """Ranks that have been silent for too long, and what is known of each."""
        found = {}
        for rank, beat in list(self._heard.items()):  # which the other thread adds to
            silence = self._listened - beat.at
            if not beat.finished and silence > self.dead_after:
                found[rank] = f"({beat.process}) is dead: not heard of for {silence:.0f} s, at step {beat.step} before"
        if not found and (self._store_failed or time.monotonic() - self._listened > self.dead_after):
            process = f"({self._heard[0].process}) " if 0 in self._heard and store_owner() == 0 else ""
            found[store_owner()] = f"{process}is dead: the store of the process group, its own, does not answer"
        return found

    # ------------------------------------------------------------------------------ threads

    def _beat_and_listen(self) -> None:
        while not self._store_failed:
            self._tell(finished=False)
            self._listen()
            if self._stopping.wait(BEAT):
                return

    def _tell(self, finished: bool) -> None:
        self._beats += 1
        told = Heartbeat(0.0, self._beats, self.step, self._process, finished)
        try:
            self._store.set(key_of(self.rank), json.dumps(told._asdict()))
        except dist.DistError:
            self._store_failed = True

    def _listen(self) -> None:
        others = [rank for rank in range(self.size) if rank != self.rank]
        try:
            others = [rank for rank in others if rank in self._heard or self._store.check([key_of(rank)])]
            values = self._store.multi_get([key_of(rank) for rank in others]) if others else []
        except dist.DistError:
            self._store_failed = True
            return
        self._listened = time.monotonic()
        for rank, value in zip(others, values):
            told = Heartbeat(**json.loads(value))
            if rank not in self._heard or told.count != self._heard[rank].count:
                self._heard[rank] = told._replace(at=self._listened)

    def _end_where_a_rank_is_dead(self) -> None:
        """Ends this process, whose main thread may hang in a collective that does not fail."""
        while not self._stopping.wait(BEAT):
            dead = self.dead()
            if not dead:
                continue
            if self._stopping.wait(END):
                return
            named = [f"{'torchrun' if rank == STORE else f'rank {rank}'} {what}" for rank, what in sorted(dead.items())]
            line = f"error: picard: {'; '.join(named)}. The run ends; its last checkpoint is whole"
            print(line, file=sys.stderr, flush=True)
            os._exit(1)


def key_of(rank: int) -> str:
    return f"turboprop/picard/rank{rank}"


def store_owner() -> int:
    """The rank whose process has the store of the process group."""
    return STORE if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0
