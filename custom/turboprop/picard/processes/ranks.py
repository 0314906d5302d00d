"""Which ranks of a run are alive: a dead one ends the run by name, instead of a wait without end.

A rank that computes for minutes is as silent in a collective as one that was killed. So every rank beats: a thread
counts up in the process group's own store (torch.distributed's), whatever the main thread is at, and listens to the
beats of the others. A rank whose beats stop is dead, be it killed, stopped, or cut off; a slow one goes on beating.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional

import torch.distributed as dist

BEAT = 0.5  # seconds between two beats
NAMING = 3.0  # seconds without a beat that tell who has broken a collective, once one is broken
END = 5.0  # seconds for the main thread to end by itself, once a rank is dead
STORE = -1  # in place of a rank: the store, where it is torchrun's own


class RankLost(ConnectionError):
    """Another rank is dead or has ended, so that this one cannot go on."""


@dataclass
class Heard:
    """The last that was heard of a rank, as it told it."""

    at: float  # by this rank's clock, seconds
    beat: int = 0
    step: int = 0
    process: str = ""
    ended: Optional[str] = None  # why it has ended by itself; "": its work was done
    lost: Optional[List[int]] = None  # ranks that it ended for

    def failed(self) -> bool:
        return bool(self.ended) and self.lost is None


class RankWatch:
    """Beats for this rank and listens to the others of the default process group, from `start` to `stop`."""

    def __init__(self, dead_after: float) -> None:  # seconds without a beat
        self.dead_after = dead_after
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.step = 0  # that this rank is at, for messages
        self._process = f"process {os.getpid()} on {socket.gethostname()}"
        self._heard: Dict[int, Heard] = {}
        self._listened = time.monotonic()
        self._store_failed = False
        self._beats = 0
        self._leaving = False
        self._stopping = threading.Event()
        self._threads: List[threading.Thread] = []
        # A connection of its own: others of this process may wait for a key, and would hold up the beats.
        self._store = dist.group.WORLD.get_group_store().clone()
        self._telling = threading.Lock()

    def start(self) -> None:
        for work in (self._beat_and_listen, self._end_where_a_rank_is_dead):
            thread = threading.Thread(target=work, daemon=True, name=f"picard{work.__name__}")
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """This rank's work is done."""
        self._stopping.set()
        self._tell(ended="")
        for thread in self._threads:
            thread.join(timeout=2 * BEAT)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around work with collectives: raises RankLost for an error of theirs, and tells the others of any other."""
        try:
            yield
        except Exception as error:
            raised = self.explained(error)
            if raised is error:
                raise
            raise raised from error

    def explained(self, error: BaseException) -> BaseException:
        """What ends this rank: RankLost where another one is the cause of `error`, or `error` itself.

        A collective fails with whatever its backend says; which rank has broken it, its silence tells.
        """
        lost = self.lost(NAMING)
        until = time.monotonic() + NAMING + 2 * BEAT
        while not lost and isinstance(error, RuntimeError) and time.monotonic() < until and not self._store_failed:
            time.sleep(BEAT / 5)
            lost = self.lost(NAMING)
        self._leaving = True
        if not lost:
            self._tell(ended=f"{type(error).__name__}: {first_line(error)}")
            time.sleep(2 * BEAT)  # for the others to hear it, before this rank's connections close
            return error
        self._tell(ended="for others", lost=sorted(lost))
        self._let_the_others_end()
        return error if isinstance(error, RankLost) else RankLost(self.sentence(lost))

    def lost(self, silence: float) -> Dict[int, str]:
        """Ranks without which this one cannot go on, and what is known of each; silent for longer than `silence`."""
        heard = {rank: one for rank, one in self._heard.items() if rank != self.rank}
        found = {}
        for rank, one in heard.items():
            quiet = self._listened - one.at
            if one.failed():
                found[rank] = f"has ended at step {one.step} with {one.ended}"
            elif one.ended is None and quiet > silence:
                found[rank] = f"is dead: not heard of for {quiet:.0f} s, at step {one.step} before"
        for one in heard.values() if not found else ():
            found.update({rank: "was lost to other ranks" for rank in one.lost or () if rank != self.rank})
        if not found and (self._store_failed or time.monotonic() - self._listened > silence):
            found[store_owner()] = "is dead: the store of the process group, which is its own, does not answer"
        return found

    def sentence(self, lost: Dict[int, str]) -> str:
        parts = []
        for rank, what in sorted(lost.items()):
            where = f" ({self._heard[rank].process})" if rank in self._heard else ""
            parts.append(f"{'torchrun' if rank == STORE else f'rank {rank}{where}'} {what}")
        return f"picard: {'; '.join(parts)}. The run ends; its last checkpoint is whole"

    # ------------------------------------------------------------------------------ threads

    def _beat_and_listen(self) -> None:
        while True:
            try:
                self._tell()
                self._listen()
            except dist.DistError:
                self._store_failed = True
                return
            if self._stopping.wait(BEAT):
                return

    def _tell(self, ended: Optional[str] = None, lost: Optional[List[int]] = None) -> None:
        with self._telling:
            if ended is None and self._leaving:
                return
            self._beats += 1
            told = Heard(0.0, self._beats, self.step, self._process, ended, lost)
            if self._store_failed or (ended is not None and time.monotonic() - self._listened > NAMING):
                return
            try:
                self._store.set(key_of(self.rank), json.dumps(vars(told)))
            except dist.DistError:
                self._store_failed = True

    def _listen(self) -> None:
        others = [rank for rank in range(self.size) if rank != self.rank]
        others = [rank for rank in others if rank in self._heard or self._store.check([key_of(rank)])]
        values = self._store.multi_get([key_of(rank) for rank in others]) if others else []
        self._listened = time.monotonic()
        for rank, value in zip(others, values):
            told = Heard(**json.loads(value))
            if rank not in self._heard or told.beat != self._heard[rank].beat:
                told.at = self._listened
                self._heard[rank] = told

    def _let_the_others_end(self) -> None:
        """The store goes with the rank that has it, so that one leaves last."""
        until = time.monotonic() + NAMING
        while self.rank == 0 and time.monotonic() < until:
            if all(one.ended is not None or self._listened - one.at > NAMING for one in self._heard.values()):
                return
            time.sleep(BEAT / 5)

    def _end_where_a_rank_is_dead(self) -> None:
        """Ends a process whose main thread is busy, or hangs in a collective that does not fail."""
        while not self._stopping.wait(BEAT):
            lost = self.lost(self.dead_after)
            if not lost:
                continue
            if self._stopping.wait(END):
                return
            if not self._leaving:
                print(f"error: {self.sentence(lost)}", file=sys.stderr, flush=True)
            os._exit(1)


def key_of(rank: int) -> str:
    return f"turboprop/picard/rank{rank}"


def store_owner() -> int:
    """The rank whose process has the store of the process group."""
    return STORE if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
