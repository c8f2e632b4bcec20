"""A selection of runs as models, told apart where labels could be confused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from calm_lightning.errors import SweepError
from calm_lightning.tracking.reading.selection import TrackedRun
from sweeps.front.series import Series
from sweeps.front.tracked import series_of
from sweeps.report.gathering import Gathered

_PROTOCOL = (
    ("data.block_tokens", "blocks of {} tokens"),
    ("data.eval_split", "split {}"),
    ("data.eval_max_blocks", "at most {} blocks"),
    ("evaluation.start_stride", "every {}th token"),
)
"""Parameters without which two scores are not measured alike."""


@dataclass(frozen=True)
class Chosen(Gathered):
    """Chosen runs.

    Attributes:
        heading: What figures call them.
        runs: The runs as MLflow has them, in the order of `series`.
    """

    heading: str = ""
    runs: tuple[TrackedRun, ...] = ()

    @property
    def title(self) -> str:
        """Heading of figures and pages."""
        return self.heading

    def run_of(self, series: Series) -> TrackedRun:
        """Return the run of a series."""
        return next(run for run in self.runs if run.run_id == series.mlflow_run_id)

    def line(self) -> str:
        """Return what was chosen in numbers: models, runs, studies, seeds."""
        studies = sorted({name for name in self.sweeps if name})
        seeds = sorted({one.seed for one in self.series})
        parts = [f"{_count(len(self.models), 'model')} in {_count(len(self.series), 'run')}"]
        parts += [", ".join(studies)] if 0 < len(studies) <= 2 else [f"{len(studies)} studies"] if studies else []
        parts += [f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"] if len(seeds) <= 8 else []
        return " · ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def choose(runs: Sequence[TrackedRun], heading: str = "") -> Chosen:
    """Return runs as models.

    Args:
        runs: Language models' runs, each once.
        heading: What figures call them; "" makes one from their number.

    Raises:
        SweepError: None of them was evaluated after training began.
    """
    trained = [run for run in runs if any(point.step > 0 for point in run.points)]
    if not trained:
        raise SweepError(
            f"none of the {len(runs)} chosen runs was evaluated after training began: wait for the first evaluation"
        )
    series = _apart([series_of(run) for run in trained], trained)
    chosen = Chosen(
        records=(),
        marks=(),
        series=tuple(series),
        sweeps=tuple(run.tag("study") for run in trained),
        heading=heading,
        runs=tuple(trained),
    )
    return chosen if heading else replace(chosen, heading=f"The front of {_count(len(chosen.models), 'model')}")


def _apart(series: Sequence[Series], runs: Sequence[TrackedRun]) -> list[Series]:
    """Return series whose labels differ where their models do: by the study where that is enough, else by the run."""
    slugs: dict[str, set[str]] = {}
    for one in series:
        slugs.setdefault(one.label, set()).add(one.slug)
    first = {one.slug: run for one, run in reversed(list(zip(series, runs, strict=True)))}
    studies: dict[tuple[str, str], set[str]] = {}
    for one in series:
        studies.setdefault((one.label, first[one.slug].tag("study")), set()).add(one.slug)
    found = []
    for one in series:
        run = first[one.slug]
        study = run.tag("study")
        label = one.label
        if len(slugs[one.label]) > 1:
            alone = study and len(studies[one.label, study]) == 1
            label = f"{one.label} ({study if alone else run.run_id[:8]})"
        found.append(replace(one, label=label))
    return found


def cautions(runs: Sequence[TrackedRun]) -> list[str]:
    """Return what keeps the scores of some runs from being comparable, in sentences; nothing where nothing does."""
    lines = []
    corpora = sorted({run.tag("corpus") for run in runs} - {""})
    if len(corpora) > 1:
        hashes = ", ".join(corpus[:8] for corpus in corpora[:4])
        lines.append(f"The runs were trained and scored on {len(corpora)} different corpora ({hashes}).")
    for key, words in _PROTOCOL:
        values = sorted({run.params[key] for run in runs if key in run.params})
        if len(values) > 1:
            lines.append(f"Scores were not measured alike: {' or '.join(words.format(value) for value in values)}.")
    return lines


def link(run: TrackedRun) -> str:
    """Return the address of a run's page, "" where no server is known that shows it."""
    if not run.uri.startswith(("http://", "https://")) or not run.experiment_id:
        return ""
    return f"{run.uri.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
