"""Whether finished autoencoders are what they say: result, configuration, identity, weights. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calm_lightning.errors import CalmError, SweepError
from sweeps.cache.records import CONFIG, RESULT, STAGE, WEIGHTS, identity_in, read_result, run_directories


@dataclass(frozen=True)
class Problem:
    """Something wrong with one autoencoder.

    Attributes:
        run_dir: Its run directory.
        what: What is wrong, one sentence without a full stop.
    """

    run_dir: Path
    what: str


def verify(
    work_dir: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[int, list[Problem]]:
    """Check every finished autoencoder of a work directory.

    Args:
        work_dir: Directory that holds run directories.
        progress: Told how many of how many are done.

    Returns:
        How many were checked, and what is wrong with them.

    Raises:
        SweepError: There is no such directory.
    """
    if not work_dir.is_dir():
        raise SweepError(f"{work_dir} is no directory: name the one that holds the runs (--work-dir DIR)")
    finished = [run_dir for run_dir in run_directories(work_dir, STAGE) if (run_dir / RESULT).exists()]
    problems: list[Problem] = []
    for done, run_dir in enumerate(finished):
        progress(done, len(finished))
        problems += [Problem(run_dir, what) for what in problems_of(run_dir)]
    return len(finished), problems


def problems_of(run_dir: Path) -> list[str]:
    """Return what is wrong with one finished autoencoder, one sentence each."""
    from calm_lightning.config import load_config

    try:
        result = read_result(run_dir)
    except (ValueError, OSError) as error:
        return [f"{RESULT} cannot be read ({error})"]
    if result is None:
        return [f"{RESULT} is missing"]
    if not (run_dir / CONFIG).is_file():
        return [f"{CONFIG} is missing"]
    try:
        config = load_config([str(run_dir / CONFIG)])
    except CalmError as error:
        return [f"{CONFIG} does not load ({error})"]
    if config.stage != STAGE or config.model.vocabulary is None:
        return [f"{CONFIG} is not that of a finished autoencoder"]
    return _identity_problems(run_dir, config, result) + _weight_problems(run_dir / WEIGHTS, config)


def _identity_problems(run_dir: Path, config: Any, result: dict[str, Any]) -> list[str]:
    """Compare the recorded identity with the one that configuration and corpus give, and with the directory's name."""
    from calm_lightning.config import identity

    recorded = result["identity"]
    if "source" in result:  # an imported one is named by the hash of what it was imported from, not by a recipe
        return []
    corpus = result.get("protocol", {}).get("corpus")
    if not isinstance(corpus, str) or not corpus:
        return [f"{RESULT} does not say which corpus it was trained on"]
    made = identity(config, corpus=corpus)
    if made != recorded:
        return [
            f"{CONFIG} and corpus {corpus[:10]} give identity {made[:10]}, {RESULT} says {recorded[:10]}: one of the "
            f"files was changed, or another version of the program made them"
        ]
    named = identity_in(run_dir.name)
    if named and not recorded.startswith(named):
        return [f"the directory is named after {named}, {RESULT} says {recorded[:10]}"]
    return []


def _weight_problems(path: Path, config: Any) -> list[str]:
    """Compare names and shapes of all tensors with the configuration, and look at every number."""
    from safetensors import SafetensorError, safe_open

    from calm_lightning.checkpoints.translate import autoencoder_shapes

    model = config.model
    expected = autoencoder_shapes(config.autoencoder, model.K, model.latent_width(), model.vocabulary)
    try:
        with safe_open(path, framework="pt") as tensors:
            found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            problems = _shape_problems(path.name, expected, found)
            infinite = [name for name in found if not bool(tensors.get_tensor(name).isfinite().all())]
    except (OSError, SafetensorError) as error:
        return [f"{path.name} is missing or damaged ({error})"]
    return problems + _listed(f"{path.name} holds numbers that are not finite in", infinite)


def _shape_problems(file: str, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> list[str]:
    wrong = [f"{name} {found[name]}" for name in expected if name in found and found[name] != expected[name]]
    return (
        _listed(f"{file} lacks", [name for name in expected if name not in found])
        + _listed(f"{file} has unknown tensors", [name for name in found if name not in expected])
        + _listed(f"{file} has tensors of other shapes than {CONFIG} says:", wrong)
    )


def _listed(what: str, which: list[str], shown: int = 3) -> list[str]:
    """Return one sentence that names a few of several tensors, or none where there are none."""
    if not which:
        return []
    more = f" and {len(which) - shown} more" if len(which) > shown else ""
    return [f"{what} {', '.join(which[:shown])}{more}"]
