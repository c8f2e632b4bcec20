"""Workers on the nodes of a Ray cluster: one that is there, or one that is started on this machine for the run.

Each worker is the same process as everywhere else, kept by an actor that holds its cores, GPUs and further resources
for as long as it lives. An actor can be asked to have its worker leave; a task could only be killed. When a node dies,
its actors do, and `replace` makes a new one wherever there is room. The actors end with the coordinator, and their
workers then leave by themselves (`sweeps.launchers.process`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calm_lightning.errors import SweepError
from sweeps.launchers.base import (
    DIED,
    LEFT,
    PATIENCE_SECONDS,
    PROGRAM,
    RUNNING,
    STARTING,
    WorkerSettings,
    WorkerStatus,
)
from sweeps.launchers.config import read_options
from sweeps.launchers.machine import Machine
from sweeps.launchers.nodes import CPU, GPU, share_nodes
from sweeps.launchers.process import Ending, WorkerProcess, threads

_NAMESPACE = "calm"
_OBJECT_STORE_BYTES = 100 * 2**20
"""Memory for objects of a cluster started for the run: workers exchange none, and Ray would take a third of it all."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Makes Ray listen on 127.0.0.1 only, as it does on systems where it has no clusters."""
_ONE_TRY = {"RAY_gcs_server_port_wait_time_s": "1"}
"""Makes Ray give up after one try, about 15 s, on a cluster that does not answer, instead of after five minutes."""
_ANSWER_SECONDS = 10.0
_WAITING_AFTER = 10.0
"""Seconds after which a worker that has not begun is said to wait for resources."""


@dataclass
class RayOptions:
    """`launch.options` of the launcher "ray".

    Attributes:
        address: Address of a cluster, "auto" for the one this machine is part of, or empty: one is started for the
            run, on this machine and its loopback address only.
        resources: Custom resources of each worker, for example {big_memory: 1}.
        environment: Environment variables of each worker. Nodes do not inherit those of the coordinator.
        wait_for_nodes: The cluster grows by itself: wait for nodes instead of refusing what does not fit now.
    """

    address: str = ""
    resources: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    wait_for_nodes: bool = False


class Keeper:
    """Keeps one worker; an actor of Ray, whose methods run side by side."""

    def __init__(
        self, directory: Path, name: str, program: Sequence[str], environment: dict[str, str], where: Path
    ) -> None:
        self._worker = WorkerProcess(directory, name, program, environment, where=where)

    def place(self) -> str:
        """Return where the worker is."""
        return self._worker.place

    def ending(self) -> Ending | None:
        """Return how the worker ended, as soon as it has."""
        return self._worker.wait()

    def leave(self) -> None:
        """Ask the worker to leave."""
        self._worker.leave()

    def kill(self) -> None:
        """End the worker at once."""
        self._worker.kill()


@dataclass
class _Kept:
    """A worker as the launcher knows it: its actor, the promises of its place and its ending, and what came of them."""

    actor: Any
    place_ref: Any
    ending_ref: Any
    begun: float
    place: str = ""
    ending: Ending | None = None


class RayLauncher:
    """Starts workers in a Ray cluster.

    Args:
        settings: How many, and what each gets.
        program: What the Python interpreter is given to become a worker.

    Raises:
        ConfigError: An unknown option.
        SweepError: Ray is not installed.
    """

    def __init__(self, settings: WorkerSettings, program: Sequence[str] = PROGRAM) -> None:
        self._settings, self._program = settings, tuple(program)
        self._options = read_options(RayOptions, settings.options)
        self._names = settings.names("ray")
        with _environment(_QUIET if self._options.address else _QUIET | _LOOPBACK):
            try:
                import ray
            except ImportError:
                raise SweepError("launcher ray needs Ray: pip install 'calm-lightning[ray]'") from None
        self._ray: Any = ray
        self._connected = False
        self._demand: dict[str, float] = {}
        self._kept: dict[str, _Kept] = {}

    def start(self) -> None:
        """See `Launcher.start`."""
        self._connect()
        try:
            self._demand = self._share()
            for name in self._names:
                self._kept[name] = self._begin(name)
        except BaseException:
            self.stop(now=True)
            raise

    def poll(self) -> list[WorkerStatus]:
        """See `Launcher.poll`."""
        return [self._status(name) for name in self._names]

    def replace(self, name: str) -> None:
        """See `Launcher.replace`."""
        if self._status(name).state in (LEFT, DIED):
            self._kept[name] = self._begin(name)

    def stop(self, *, now: bool, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """See `Launcher.stop`."""
        if not self._connected:
            return
        for name in self._names:
            self._status(name)  # what has ended already is remembered as it was
        alive = {name: kept for name, kept in self._kept.items() if kept.ending is None}
        begun = {name: kept for name, kept in alive.items() if kept.place}
        for kept in begun.values():
            (kept.actor.kill if now else kept.actor.leave).remote()
        self._await(begun, _ANSWER_SECONDS if now else patience_seconds)
        if not now and any(kept.ending is None for kept in begun.values()):
            for kept in begun.values():
                if kept.ending is None:
                    kept.actor.kill.remote()
            self._await(begun, _ANSWER_SECONDS)
        for kept in alive.values():
            if kept.ending is None:
                kept.ending = Ending(DIED, "out of reach") if kept.place else Ending(LEFT, "it had not begun")
                self._release(kept)
        self._disconnect()

    def _connect(self) -> None:
        """Reach the cluster, or start one; a session of Ray that this process has already is used and left as it is.

        Raises:
            SweepError: It cannot be reached.
        """
        ray = self._ray
        self._connected, self._own_session = True, not ray.is_initialized()
        if not self._own_session:
            return
        quiet = {"namespace": _NAMESPACE, "log_to_driver": False, "logging_level": "CRITICAL"}
        address = self._options.address
        with _kept_signals(), _environment(_QUIET | (_ONE_TRY if address else _LOOPBACK)):
            try:
                if address:
                    ray.init(address=address, **quiet)
                else:
                    machine = Machine.this()
                    ray.init(
                        address="local",
                        num_cpus=machine.limit,
                        num_gpus=len(machine.gpus),
                        include_dashboard=False,
                        object_store_memory=_OBJECT_STORE_BYTES,
                        **quiet,
                    )
            except (ConnectionError, OSError, RuntimeError, ValueError) as error:
                self._connected = False
                what = f"the Ray cluster {address} cannot be reached" if address else "Ray cannot be started here"
                raise SweepError(
                    f"{what} ({_first_sentence(error)}): start one with `ray start --head`, or leave "
                    f"launch.options.address empty to have one on this machine"
                ) from None
        _hear_daemons(ray, False)

    def _disconnect(self) -> None:
        self._connected = False
        if self._own_session:
            _hear_daemons(self._ray, True)
            with _kept_signals():
                self._ray.shutdown()

    def _share(self) -> dict[str, float]:
        """Return the resources of each worker.

        Raises:
            SweepError: The cluster can never satisfy them.
        """
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not self._options.wait_for_nodes:
            return share_nodes(nodes, self._settings, self._options.resources)
        asked = self._settings
        return {CPU: float(asked.cores or 1), GPU: asked.gpus or 0.0, **self._options.resources}

    def _begin(self, name: str) -> _Kept:
        """Have an actor made for a worker, on whichever node has room, now or later."""
        demand = dict(self._demand)
        cores = demand.pop(CPU)
        actors = self._ray.remote(Keeper).options(
            num_cpus=cores,
            num_gpus=demand.pop(GPU),
            resources={name: amount for name, amount in demand.items() if amount > 0},
            max_restarts=0,
            max_concurrency=4,
        )
        environment = {**threads(int(cores)), **self._options.environment}
        actor: Any = actors.remote(self._settings.directory, name, self._program, environment, Path.cwd())
        return _Kept(actor, actor.place.remote(), actor.ending.remote(), time.monotonic())

    def _status(self, name: str) -> WorkerStatus:
        """Return the state of a worker, from what has arrived."""
        kept = self._kept.get(name)
        if kept is None:
            return WorkerStatus(name, "", STARTING)
        if self._connected:
            self._look(kept)
        if kept.ending is not None:
            return WorkerStatus(name, kept.place, kept.ending.state, kept.ending.reason)
        if kept.place:
            return WorkerStatus(name, kept.place, RUNNING)
        waits = time.monotonic() - kept.begun > _WAITING_AFTER
        wanted = " and ".join(f"{amount:g} {what}" for what, amount in self._demand.items() if amount > 0)
        return WorkerStatus(name, "", STARTING, f"waits for a node with {wanted} to spare" if waits else "")

    def _look(self, kept: _Kept) -> None:
        """Take note of what has arrived from an actor."""
        errors = self._ray.exceptions
        try:
            if not kept.place and self._has_arrived(kept.place_ref):
                kept.place = self._ray.get(kept.place_ref)
            if kept.ending is None and self._has_arrived(kept.ending_ref):
                kept.ending = self._ray.get(kept.ending_ref)
        except errors.ActorUnavailableError:
            kept.ending_ref = kept.actor.ending.remote()  # out of reach for the moment: ask again
        except errors.RayError as error:
            kept.ending = Ending(DIED, _reason(error))
        if kept.ending is not None:
            self._release(kept)

    def _has_arrived(self, promise: Any) -> bool:
        return bool(self._ray.wait([promise], timeout=0)[0])

    def _await(self, kept: dict[str, _Kept], seconds: float) -> None:
        """Wait for workers to end, for so many seconds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for one in kept.values():
                if one.ending is None:
                    self._look(one)
            waiting = [one.ending_ref for one in kept.values() if one.ending is None]
            if not waiting:
                return
            self._ray.wait(waiting, num_returns=len(waiting), timeout=min(0.5, max(0.0, until - time.monotonic())))

    def _release(self, kept: _Kept) -> None:
        """End an actor, so that its resources are free for others."""
        with suppress(Exception):
            self._ray.kill(kept.actor, no_restart=True)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _kept_signals() -> Iterator[None]:
    """Keep what SIGTERM does in this process, which Ray would take over."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with suppress(ValueError):  # not the main thread, where Ray leaves it alone too
            signal.signal(signal.SIGTERM, before)


def _hear_daemons(ray: Any, wanted: bool) -> None:
    """Have Ray print what its daemons say, pages of it when a node dies, or not; for that it has no public switch."""
    worker: Any = getattr(getattr(ray, "_private", None), "worker", None)
    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = wanted


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.split(". ")[0].rstrip(".") or type(error).__name__


def _reason(error: Exception) -> str:
    """Return what Ray knows of an actor's death, without the table of its numbers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("The actor is dead", "The actor died because"))] or lines[-1:]
    return _first_sentence(Exception(told[0])) if told else type(error).__name__
