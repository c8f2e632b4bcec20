"""How many workers fit on the nodes of a cluster, and how large they can be so that all of them fit.

Every worker gets the same, so that trials are trained under the same conditions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from calm_lightning.errors import SweepError
from sweeps.launchers.base import WorkerSettings

CPU, GPU = "CPU", "GPU"
"""Names of resources, as Ray has them."""
_ROUNDING = 1e-6


def room(nodes: Sequence[Mapping[str, float]], demand: Mapping[str, float]) -> int:
    """Return how many workers fit on the nodes at once.

    Args:
        nodes: The resources of each node.
        demand: The resources of one worker; at least one of them above 0.
    """
    needed = {name: amount for name, amount in demand.items() if amount > 0}
    return sum(int(min(node.get(name, 0.0) / amount for name, amount in needed.items()) + _ROUNDING) for node in nodes)


def share_nodes(
    nodes: Sequence[Mapping[str, float]], settings: WorkerSettings, resources: Mapping[str, float]
) -> dict[str, float]:
    """Return what each worker gets, so that all fit: as many GPUs as possible, then as many cores as possible.

    Args:
        nodes: The resources of each node.
        settings: Workers, and what is asked for each.
        resources: Further resources of each worker.

    Raises:
        SweepError: They do not fit.
    """
    largest = max(
        (demand for demand in _demands(nodes, settings) if _fits(nodes, settings, resources, demand)), default=None
    )
    if largest is not None:
        gpus, cores = largest
        return {CPU: cores, GPU: gpus, **resources}
    least = {CPU: float(settings.cores or 1), GPU: settings.gpus or 0.0, **resources}
    what = " and ".join(f"{amount:g} {name}" for name, amount in least.items() if amount > 0)
    raise SweepError(
        f"this Ray cluster has room for {room(nodes, least)} workers with {what} each, and launch.workers="
        f"{settings.count} are asked for: ask for fewer or smaller ones, or add nodes (a cluster that adds them by "
        f"itself needs launch.options.wait_for_nodes=true)"
    )


def _demands(nodes: Sequence[Mapping[str, float]], settings: WorkerSettings) -> Iterator[tuple[float, float]]:
    """Yield the (GPUs, cores) that a worker may be given."""
    most_cores = int(max((node.get(CPU, 0.0) for node in nodes), default=0.0))
    most_gpus = int(max((node.get(GPU, 0.0) for node in nodes), default=0.0))
    cores = range(1, most_cores + 1) if settings.cores is None else [settings.cores]
    if settings.gpus is not None:
        gpus = [settings.gpus]
    else:
        gpus = [0.0, *(map(float, range(1, most_gpus + 1)))]
        gpus += [1.0 / number for number in range(2, settings.count + 1)] if most_gpus else []
    return ((gpu, float(core)) for gpu in gpus for core in cores)


def _fits(
    nodes: Sequence[Mapping[str, float]],
    settings: WorkerSettings,
    resources: Mapping[str, float],
    demand: tuple[float, float],
) -> bool:
    gpus, cores = demand
    return room(nodes, {CPU: cores, GPU: gpus, **resources}) >= settings.count
