"""Several computations in turns, so that what each of them asks for is computed once for all.

A task runs until it asks for something; then the next one runs. When all wait, those that ask for the same kind of
thing are answered together. Tasks are greenlets: they share one thread, so the device, its stream, the allocator and
the order in which autograd counts its nodes are as without them. What is global in Python and in torch is put away and
brought back at each turn by `enter` and `leave`.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Hashable, List, Protocol, Sequence

from greenlet import GreenletExit, getcurrent, greenlet


class Request(Protocol):
    """What a task asks for."""

    key: Hashable  # requests of one key are answered together
    patient: bool  # answered only when nobody asks for anything else


class Turns:
    """Runs tasks, see above."""

    def __init__(
        self,
        answer: Callable[[Sequence[Any]], Sequence[Any]],  # requests of one key -> as many answers
        enter: Callable[[Any], None],  # makes a task's surroundings real
        leave: Callable[[], Any],  # the surroundings now
    ) -> None:
        self._answer = answer
        self._enter = enter
        self._leave = leave

    def ask(self, request: Request) -> Any:
        """The answer to a request of the task that runs. Raises RuntimeError outside of one."""
        task = getcurrent()
        if task.parent is None:
            raise RuntimeError("turns: only a task that takes turns can ask")
        return task.parent.switch(request)

    def run(self, tasks: Sequence[Callable[[], Any]], surroundings: Any) -> List[Any]:
        """The tasks' results; each begins in `surroundings`. An exception of one ends all, and is raised."""
        turns = [_Turn(greenlet(task), surroundings) for task in tasks]
        try:
            for turn in turns:
                self._resume(turn)
            while waiting := [turn for turn in turns if not turn.task.dead]:
                together = _next_group(waiting)
                self._enter(together[0].surroundings)
                answers = self._answer([turn.request for turn in together])
                for turn, answer in zip(together, answers):
                    self._resume(turn, answer)
            return [turn.result for turn in turns]
        finally:
            for turn in turns:
                self._end(turn)

    def _resume(self, turn: "_Turn", *answer: Any) -> None:
        self._enter(turn.surroundings)
        given = turn.task.switch(*answer)
        turn.surroundings = self._leave()
        if turn.task.dead:
            turn.result = given
        else:
            turn.request, turn.answered = given, turn.answered + len(answer)

    def _end(self, turn: "_Turn") -> None:
        """Of a task that another one's exception has left waiting: its `finally` blocks run."""
        if turn.task and not turn.task.dead:
            self._enter(turn.surroundings)
            turn.task.throw(GreenletExit)


class _Turn:
    def __init__(self, task: greenlet, surroundings: Any) -> None:
        self.task = task
        self.surroundings = surroundings
        self.request: Any = None
        self.result: Any = None
        self.answered = 0


def _next_group(waiting: Sequence[_Turn]) -> List[_Turn]:
    """Those that ask for the same as the one that is furthest behind."""
    groups: Dict[Hashable, List[_Turn]] = {}
    for turn in waiting:
        groups.setdefault(turn.request.key, []).append(turn)
    return min(groups.values(), key=lambda group: (group[0].request.patient, min(turn.answered for turn in group)))
