"""Cooperative tasks, so that what each of them asks for is computed once for all.

A task runs until it asks for something; then the next one runs. When all wait, those that ask for the same kind of
thing are answered together. Tasks are greenlets: they share one thread, so the device, its stream, the allocator and
the order in which autograd counts its nodes are as without them. What is global in Python and in torch, a task's
context, is put away and brought back each time that another task goes on.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Hashable, List, Protocol, Sequence

from greenlet import GreenletExit, getcurrent, greenlet


class Request(Protocol):
    """What a task asks for."""

    key: Hashable  # requests of one key are answered together
    patient: bool  # answered only when nobody asks for anything else


class CooperativeScheduler:
    def __init__(
        self,
        answer: Callable[[Sequence[Any]], Sequence[Any]],  # requests of one key -> as many answers
        restore: Callable[[Any], None],  # makes a task's context the present one
        snapshot: Callable[[], Any],  # the present context
    ) -> None:
        self._answer = answer
        self._restore = restore
        self._snapshot = snapshot

    def ask(self, request: Request) -> Any:
        """The answer to a request of the task that runs. Raises RuntimeError outside of one."""
        current = getcurrent()
        if current.parent is None:
            raise RuntimeError("scheduler: only a task can ask")
        return current.parent.switch(request)

    def run(self, functions: Sequence[Callable[[], Any]], context: Any) -> List[Any]:
        """The results of all functions; each begins in `context`. An exception of one ends all, and is raised."""
        tasks = [_Task(greenlet(function), context) for function in functions]
        try:
            for task in tasks:
                self._resume(task)
            while waiting := [task for task in tasks if not task.greenlet.dead]:
                together = _next_group(waiting)
                self._restore(together[0].context)
                answers = self._answer([task.request for task in together])
                for task, answer in zip(together, answers):
                    self._resume(task, answer)
            return [task.result for task in tasks]
        finally:  # tasks that an exception of another one has left waiting: their `finally` blocks run
            for task in tasks:
                if task.greenlet and not task.greenlet.dead:
                    self._restore(task.context)
                    task.greenlet.throw(GreenletExit)

    def _resume(self, task: "_Task", *answer: Any) -> None:
        self._restore(task.context)
        given = task.greenlet.switch(*answer)
        task.context = self._snapshot()
        if task.greenlet.dead:
            task.result = given
        else:
            task.request, task.answered = given, task.answered + len(answer)


class _Task:
    def __init__(self, own: greenlet, context: Any) -> None:
        self.greenlet = own
        self.context = context
        self.request: Any = None
        self.result: Any = None
        self.answered = 0  # requests


def _next_group(waiting: Sequence[_Task]) -> List[_Task]:
    """Those that ask for the same as the one that is furthest behind."""
    groups: Dict[Hashable, List[_Task]] = {}
    for task in waiting:
        groups.setdefault(task.request.key, []).append(task)
    return min(groups.values(), key=lambda group: (group[0].request.patient, min(task.answered for task in group)))
