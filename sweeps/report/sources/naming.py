"""What a user means by a run: a directory, a name in the work directory, or something in an MLflow store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calm_lightning.errors import SweepError, TrackingError
from calm_lightning.tracking.reading.places import Place, find_place, open_place, place_beside
from calm_lightning.tracking.reading.selection import TrackedRun, read_run, select_runs, split_selection
from sweeps.cache.records import identity_in, run_directories
from sweeps.directory import SESSION, find_sweeps
from sweeps.report.sources.evaluations import DOCUMENT
from sweeps.report.sources.folders import is_run

STAGES = ("autoencoder", "calm", "baseline")
_NO_MODELS = ("sweep", "evaluation")
_MOST_NAMES = 8
_FEWEST_OF_SWEEP = 2
"""Runs from which a word is taken to mean their sweep rather than one of its trials."""
_FILTER_MARKS = ("=", "<", ">", "'", '"', "`", "::")


@dataclass
class Named:
    """What some words mean.

    Attributes:
        folders: Run directories.
        sweeps: Directories of sweeps.
        tracked: Runs of MLflow stores, and the stores.
    """

    folders: list[Path] = field(default_factory=list)
    sweeps: list[Path] = field(default_factory=list)
    tracked: list[tuple[TrackedRun, Place]] = field(default_factory=list)


def find_named(
    words: Sequence[str],
    work_dir: Path,
    uri: str = "",
    *,
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> Named:
    """Return what some words mean, everything once.

    A word is a run directory; a sweep's directory; the name of one of these in the work directory, or how it begins; or
    a selection of runs in an MLflow store (`calm_lightning.tracking.reading.selection`), an autoencoder's run included.

    Args:
        words: The words.
        work_dir: Directory that holds run directories.
        uri: MLflow store, "" for the one beside the work directory.
        progress: Told how much of how much is done, and of which word.

    Raises:
        SweepError: A word means nothing, or may mean several things.
        TrackingError: A word can only be something in MLflow, and the store does not answer.
    """
    found = Named()
    for number, word in enumerate(words):
        progress(number, len(words), word)
        _find_one(word, work_dir, uri, found)
    found.folders = list({path.resolve(): path for path in found.folders}.values())
    found.sweeps = list({path.resolve(): path for path in found.sweeps}.values())
    found.tracked = list({run.identity: (run, place) for run, place in found.tracked}.values())
    return found


def _find_one(word: str, work_dir: Path, uri: str, found: Named) -> None:
    place = Path(word)
    if (place / SESSION).is_file():
        found.sweeps.append(place)
    elif (place / DOCUMENT).is_file():
        raise SweepError(f"{word} is an evaluation: name the run of its model, whose report shows it")
    elif is_run(place):
        found.folders.append(place)
    elif (named := _named(word, work_dir)) is not None:
        (found.sweeps if (named / SESSION).is_file() else found.folders).append(named)
    elif place.is_dir():
        raise SweepError(
            f"{word} holds neither a run nor a sweep: name a run directory, such as {work_dir}/calm/NAME, or a "
            f"sweep's, such as {work_dir}/sweeps/NAME"
        )
    else:
        _find_tracked(word, work_dir, uri, found)


def _named(word: str, work_dir: Path) -> Path | None:
    """Return the run or sweep in a work directory that a name means, None where none does.

    Raises:
        SweepError: It may be several.
    """
    runs = [path for stage in STAGES for path in run_directories(work_dir, stage) if is_run(path)]
    known = [*find_sweeps(work_dir), *runs]
    meant = (
        [path for path in known if path.name == word],
        [path for path in known if path.name.removesuffix(f"-{identity_in(path.name)}") == word],
        [path for path in known if path.name.startswith(word)] if word else [],
    )
    chosen = next((paths for paths in meant if paths), [])
    if len(chosen) > 1:
        names = ", ".join(path.name for path in chosen[:_MOST_NAMES])
        more = f" and {len(chosen) - _MOST_NAMES} more" if len(chosen) > _MOST_NAMES else ""
        raise SweepError(
            f"{word} may be any of {len(chosen)} in {work_dir} ({names}{more}): write more of the name, or all of the "
            "directories"
        )
    return chosen[0] if chosen else None


def _find_tracked(word: str, work_dir: Path, uri: str, found: Named) -> None:
    """Add the runs of a store that a word means.

    Raises:
        SweepError: It means nothing.
        TrackingError: The store cannot be opened, or a filter cannot be read.
    """
    default = find_place(uri) if uri else place_beside(work_dir)
    place = split_selection(word, default)[0]
    is_selection = any(mark in word for mark in _FILTER_MARKS)
    try:
        open_place(place)
    except TrackingError as error:
        if is_selection or uri:
            raise
        raise SweepError(f"{_nothing(word, work_dir)}; and {error}") from None
    try:
        chosen = select_runs([word], default)
    except TrackingError as error:
        single = _single(word, default)
        if single is None:
            if is_selection:
                raise
            raise SweepError(f"{_nothing(word, work_dir)}, and {error}") from None
        chosen = [single]
    sweep = None if is_selection else _sweep_of(chosen, place)
    if sweep is not None:
        found.sweeps.append(sweep)
    else:
        found.tracked += [(run, place) for run in chosen]


def _sweep_of(runs: Sequence[TrackedRun], place: Place) -> Path | None:
    """Return the directory of the sweep that several runs are the trials of, where it is on this machine.

    It knows more than MLflow: what was asked, what failed, what is still to come.
    """
    parents = {run.parent_run_id for run in runs}
    parent = parents.pop() if len(parents) == 1 else None
    if len(runs) < _FEWEST_OF_SWEEP or parent is None:
        return None
    try:
        directory = Path(read_run(parent, place).tags.get("calm.sweep_dir", ""))
    except TrackingError:
        return None
    return directory if (directory / SESSION).is_file() else None


def _single(word: str, default: Place) -> TrackedRun | None:
    """Return the one run that is no evaluated language model: an autoencoder, or a run that has just begun.

    Raises:
        SweepError: It is of a kind that has no report.
    """
    try:
        run = read_run(word, default)
    except TrackingError:
        return None
    stage = run.tag("stage")
    if stage in _NO_MODELS:
        wanted = "a sweep without a result yet" if stage == "sweep" else "an evaluation: name the run of its model"
        raise SweepError(f"the MLflow run {run.name or run.run_id} is {wanted}")
    return run if stage in STAGES else None


def _nothing(word: str, work_dir: Path) -> str:
    return f"{word} is neither a run directory nor a sweep's, nor the name of one in {work_dir}"
