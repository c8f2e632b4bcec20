"""Processes that make pieces, a bounded number of bytes at a time.

A worker is a fresh interpreter behind a socket: not a fork, which would inherit the locks of the tokenizer library's
and the progress bar's threads, and not a spawned copy, which would run the caller's main module again. Its socket
closes with its parent, however that ends, and it goes at once, so that a killed preparation leaves nobody at work. The
price is a third of a second to start; small inputs are therefore done in the calling process.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import TracebackType

from calm_lightning.errors import CalmError, DataError
from data_pipelines.writing.pieces import PieceMaker, Recipe, Task
from data_pipelines.writing.work import Key

AHEAD = 3
"""Pieces' worth of bytes in flight per worker: one at work, one on its way, one to make up for uneven ones."""
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import sys; sys.path[:] = {path!r}; from data_pipelines.writing.pool import serve; serve({handle})"
)


@dataclass
class _Worker:
    """A process, its socket, and the sizes of the pieces it has been given."""

    process: subprocess.Popen[bytes]
    socket: Connection[object, tuple[Key, Exception | None]]
    given: dict[Key, int] = field(default_factory=dict)


class Pool:
    """Makes pieces in worker processes, or in this one where there is but one worker."""

    def __init__(self, recipe: Recipe, workers: int, piece_bytes: int) -> None:
        """Take what pieces are made from; processes start with the first piece.

        Args:
            recipe: See `Recipe`.
            workers: Processes; 1 works in the calling one.
            piece_bytes: Usual size of a piece.
        """
        self._recipe, self._number = recipe, workers
        self._window = AHEAD * workers * piece_bytes
        self._workers: list[_Worker] = []
        self._failed: dict[Key, Exception] = {}
        self._own = PieceMaker(recipe)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._workers:
            worker.socket.close()
        for worker in self._workers:
            worker.process.wait()

    def submit(self, task: Task) -> None:
        """Have a piece made; returns when there is room for it, at most so many bytes being under way."""
        size = sum(len(record) for _, record in task.records)
        if self._number == 1:
            try:
                self._own.make(task)
            except Exception as error:
                self._failed[task.key] = error
            return
        if not self._workers:
            self._workers = [_start(self._recipe) for _ in range(self._number)]
        while (under_way := self._under_way()) and under_way + size > self._window:
            self.wait()
        worker = min(self._workers, key=lambda worker: sum(worker.given.values()))
        worker.given[task.key] = size
        try:
            worker.socket.send(task)
        except OSError:
            self._lost(worker)

    def wait(self) -> None:
        """Wait until one more of the pieces under way is made, if there are any."""
        busy = {worker.socket: worker for worker in self._workers if worker.given}
        for socket in wait(list(busy)) if busy else ():
            worker = busy[socket]  # type: ignore[index]  # only connections were asked for
            try:
                key, error = worker.socket.recv()
            except (EOFError, OSError):
                self._lost(worker)
                continue
            del worker.given[key]
            if error is not None:
                self._failed[key] = error

    def is_made(self, key: Key) -> bool:
        """Return whether a piece that was submitted is made.

        Raises:
            DataError: It could not be.
            OSError: Its files could not be written.
        """
        while any(worker.given and worker.socket.poll() for worker in self._workers):
            self.wait()
        if key in self._failed:
            raise self._failed[key]
        return not any(key in worker.given for worker in self._workers)

    def _under_way(self) -> int:
        return sum(sum(worker.given.values()) for worker in self._workers)

    def _lost(self, worker: _Worker) -> None:
        """Give up the pieces of a process that is gone; no other can tell whether they are what ended it."""
        died = DataError(
            "a worker process died, perhaps for want of memory: run the same command again, it continues "
            "(smaller --workers and --piece-mb need less)"
        )
        self._failed.update(dict.fromkeys(worker.given, died))
        worker.given.clear()


def _start(recipe: Recipe) -> _Worker:
    ours, theirs = Pipe()
    # One core's work each: the tokenizer library's own threads would only be in each other's way.
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", _START.format(path=sys.path, handle=theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    theirs.close()
    ours.send(recipe)
    return _Worker(process, ours)


def serve(handle: int) -> None:
    """Be a worker process: make the pieces that come through a socket until it closes.

    Args:
        handle: The socket's file descriptor.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    socket: Connection[tuple[Key, Exception | None], object] = Connection(handle)
    recipe = socket.recv()
    assert isinstance(recipe, Recipe)
    maker = PieceMaker(recipe)
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(socket, tasks), daemon=True).start()
    while True:
        task = tasks.get()
        failure: Exception | None = None
        try:
            maker.make(task)
        except (CalmError, OSError) as error:
            failure = error
        except Exception:
            failure = RuntimeError(traceback.format_exc())
        try:
            socket.send((task.key, failure))
        except OSError:  # the parent has just gone
            return


def _receive(socket: Connection[object, object], tasks: queue.SimpleQueue[Task]) -> None:
    """Take pieces from the socket while others are being made; end the process when it closes."""
    try:
        while True:
            task = socket.recv()
            assert isinstance(task, Task)
            tasks.put(task)
    except (EOFError, OSError):
        os._exit(0)
