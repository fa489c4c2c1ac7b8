"""An asyncio event loop without sockets, threads or waiting: time jumps to the next timer.

Knows callbacks, and whose they are: each belongs to the `Life` (one process, from start to crash)
that is in its context. What belongs to a dead life is never run again, what belongs to a paused one
waits. One order of calls gives one history.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
from asyncio import events
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, TypeVar, cast

_T = TypeVar("_T")

# Passes at one instant of virtual time, at most: more is a loop that does not come to rest.
INSTANT_STEPS_MAX: Final = 100_000
# A timer is that much late: rounded to whole nanoseconds, its time must have come.
_TICK_SECONDS: Final = 2e-9


class DeadlockError(AssertionError):
    """Nothing is ready, and no timer will change that."""


class LivelockError(AssertionError):
    """Callbacks go on and on, and time does not pass."""


class Life:
    """One process from its start to its end.

    Attributes:
        name: of the server, or `world` for what belongs to none.
        host: where it dials from.
        rate: how fast its clock runs.
        alive: False after a crash: nothing of it runs any more.
        paused: its callbacks wait in `held`.
        on_crash: called once when it crashes.
    """

    def __init__(self, name: str, host: str, rate: float = 1.0) -> None:
        self.name = name
        self.host = host
        self.rate = rate
        self.alive = True
        self.paused = False
        self.held: deque[tuple[asyncio.Handle, Life]] = deque()
        self.on_crash: list[Callable[[], None]] = []
        self.context: Context = copy_context()
        self.context.run(LIFE.set, self)


LIFE: ContextVar[Life] = ContextVar("LIFE")


class VirtualFuture(asyncio.Future[Any]):
    """A future whose place in a set does not depend on its address."""

    _count = 0

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        VirtualFuture._count += 1
        self._number = VirtualFuture._count

    def __hash__(self) -> int:
        return self._number


class VirtualTask(asyncio.Task[Any]):
    """A task that knows whose it is, and whose place in a set does not depend on its address."""

    _count = 0

    def __init__(self, coro: Any, **kwargs: Any) -> None:
        VirtualTask._count += 1
        self._number = VirtualTask._count
        context: Context | None = kwargs.get("context")
        self.life: Life = LIFE.get() if context is None else context[LIFE]
        super().__init__(coro, **kwargs)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop. `run` runs one coroutine to its end, in the life called `world`.

    Attributes:
        world: the life of what belongs to no server.
        steps: callbacks run so far.
        complaints: exceptions that no code of a living process has taken; see `run`.
        executor_delay: virtual seconds that a call in a thread takes.
    """

    def __init__(self) -> None:
        self.world = Life("world", "")
        self.steps = 0
        self.complaints: list[str] = []
        self.executor_delay: Callable[[], float] = lambda: 0.0
        self._now = 1_000.0
        self._life = self.world
        self._ready: deque[tuple[asyncio.Handle, Life]] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle, Life]] = []
        self._count = 0
        self._instant_steps = 0
        self._running = False
        self._closed = False
        self._buried: list[object] = []
        self._connections: Any = None

    # -- time and callbacks

    @property
    def now(self) -> float:
        """The world's clock, seconds."""
        return self._now

    def time(self) -> float:
        """The clock of the process whose callback runs."""
        return self._now * self._life.rate

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:  # type: ignore[override] # no TypeVarTuple
        """As asyncio's."""
        life = LIFE.get(self.world) if context is None else context.get(LIFE, self.world)
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append((handle, life))
        return handle

    def call_soon_threadsafe(  # type: ignore[override] # no TypeVarTuple
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        """As `call_soon`: there are no threads."""
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override] # no TypeVarTuple
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        """As asyncio's."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override] # no TypeVarTuple
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        """As asyncio's; `when` by the clock of the process that calls."""
        life = LIFE.get(self.world) if context is None else context.get(LIFE, self.world)
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        due = when / self._life.rate + _TICK_SECONDS
        heapq.heappush(self._timers, (due, self._count, handle, life))
        return handle

    def at(
        self, when: float, callback: Callable[..., object], *args: object
    ) -> asyncio.TimerHandle:
        """Call it at a time of the world's clock, as nobody's."""
        handle = asyncio.TimerHandle(when, callback, args, self, self.world.context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle, self.world))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by asyncio; a cancelled timer is dropped when it is due."""

    def create_future(self) -> Any:
        """As asyncio's."""
        return VirtualFuture(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_: Any,
    ) -> asyncio.Task[_T]:
        """As asyncio's; the task belongs to the life of its context."""
        return VirtualTask(coro, loop=self, name=name, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override] # no TypeVarTuple
        """Call it later, here: there are no threads."""
        assert executor is None, "no pools here"
        future = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - handed to the awaiting caller
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(self.executor_delay(), run)
        return future

    # -- running

    def run(self, main: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end.

        Raises:
            DeadlockError: it waits for something that cannot happen.
            LivelockError: time does not pass any more.
        """
        hooks = sys.get_asyncgen_hooks()
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(finalizer=self._finalize)
        self._running = True
        try:
            task = self.world.context.run(self.create_task, main)
            while not task.done():
                self._turn()
            return task.result()
        finally:
            self._running = False
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(None)

    def _turn(self) -> None:
        timers, ready = self._timers, self._ready
        if not ready:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise DeadlockError("nothing is ready, and no timer runs")
            if timers[0][0] > self._now:
                self._now = timers[0][0]
                self._instant_steps = 0
        while timers and timers[0][0] <= self._now:
            _, _, timer, life = heapq.heappop(timers)
            ready.append((timer, life))
        for _ in range(len(ready)):
            item = ready.popleft()
            handle, life = item
            if handle.cancelled() or not life.alive:
                continue
            if life.paused:
                life.held.append(item)
                continue
            self.steps += 1
            self._life = life
            handle._run()
        self._life = self.world
        self._instant_steps += 1
        if self._instant_steps > INSTANT_STEPS_MAX:
            last = Counter(repr(handle)[:100] for handle, _ in ready)
            raise LivelockError(f"time does not pass: {last.most_common(3)}")

    def _finalize(self, agen: AsyncGenerator[Any, Any]) -> None:
        if not self._running or not LIFE.get(self.world).alive:
            self._buried.append(agen)
        else:
            self.create_task(agen.aclose())

    # -- processes

    def pause(self, life: Life) -> None:
        """Nothing of it runs until `resume`."""
        life.paused = True

    def resume(self, life: Life) -> None:
        """Run what waited, in its order."""
        life.paused = False
        self._ready.extend(life.held)
        life.held.clear()

    def kill(self, life: Life) -> None:
        """Nothing of it ever runs again, not even a `finally`."""
        if not life.alive:
            return
        life.alive = False
        self._buried.extend(self.tasks_of(life))
        life.held.clear()
        for callback in life.on_crash:
            callback()

    def tasks_of(self, life: Life) -> list[asyncio.Task[Any]]:
        """Its tasks that are not done."""
        tasks = [cast("VirtualTask", task) for task in asyncio.all_tasks(self)]
        return [task for task in tasks if task.life is life]

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what nobody has caught, but not of the dead."""
        owner: Any = context.get("task") or context.get("future")
        life = getattr(owner, "life", None) or LIFE.get(self.world)
        if life.alive and self._running:
            self.complaints.append(
                f"{life.name}: {context['message']}: {context.get('exception')!r}"
            )

    # -- the network

    def use_network(self, network: Any) -> None:
        """What `create_connection` and `create_server` go to."""
        self._connections = network

    async def create_connection(self, protocol_factory: Any, *args: Any, **kwargs: Any) -> Any:
        """A connection in the virtual network."""
        assert kwargs.get("ssl") is None, "no TLS here"
        host, port = args
        return await self._connections.connect(LIFE.get(), protocol_factory, host, port)

    async def create_server(self, protocol_factory: Any, *args: Any, **kwargs: Any) -> Any:
        """Listen in the virtual network."""
        assert kwargs.get("ssl") is None, "no TLS here"
        host, port = args
        return self._connections.listen(LIFE.get(), protocol_factory, host, port)

    # -- the rest of a loop

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """As asyncio's."""
        return self._running

    def is_closed(self) -> bool:
        """As asyncio's."""
        return self._closed

    def close(self) -> None:
        """Drop everything: what was left of the dead ends here, unseen."""
        self._closed = True
        # Else a `finally` that looks for a loop makes a real one, which nobody closes.
        events._set_running_loop(self)
        try:
            left = [*self._buried, *asyncio.all_tasks(self)]
            buried: set[object] = set()
            while left:
                for task in left:
                    _bury(task)
                buried.update(left)
                left = list(asyncio.all_tasks(self) - buried)  # what a `finally` began
        finally:
            events._set_running_loop(None)
        self._buried.clear()
        self._ready.clear()
        self._timers.clear()


def _bury(left: object) -> None:
    """End a coroutine that will never be run again. Its `finally` may fail: no loop runs."""
    task: Any = left
    coro: Any = left
    if isinstance(left, asyncio.Task):
        task._log_destroy_pending = False
        coro = task.get_coro()
    close = getattr(coro, "close", None)
    for _ in range(20):  # a `finally` may wait more than once
        try:
            if close is not None:
                close()
        except BaseException:  # noqa: BLE001, S112 - the process is dead; nobody is to hear of it
            continue
        return


def virtual_loop() -> VirtualLoop:
    """A new loop. What it does not know (sockets, signals) raises NotImplementedError."""
    loop: VirtualLoop = cast("Any", VirtualLoop)()  # abstract to a type checker, on purpose
    return loop
