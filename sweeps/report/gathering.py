"""Sweeps and runs that belong to none, put together: their series, told apart where labels could be confused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

from calm_lightning.errors import SweepError
from sweeps.front.series import PRUNED, Series
from sweeps.report.seeds import Model, models_of
from sweeps.trials.reading import SweepRecord

_MOST_NAMED = 3
"""Models that a heading names."""


@dataclass(frozen=True)
class Gathered:
    """What a report is made from.

    Attributes:
        records: The sweeps as they were read; none where only runs were named.
        marks: What stands before the labels of each sweep: "" for a single one, else "A: ", "B: " and so on.
        series: All series, labelled apart.
        sweeps: Name of the study that each of the series belongs to; "" for runs that were named one by one.
    """

    records: tuple[SweepRecord, ...]
    marks: tuple[str, ...]
    series: tuple[Series, ...]
    sweeps: tuple[str, ...]

    @property
    def models(self) -> list[Model]:
        """The models: series of one point of one sweep."""
        return models_of(self.series)

    @property
    def sweep_of(self) -> dict[str, str]:
        """Name of the study by the slug of its models."""
        return {one.slug or one.label: name for one, name in zip(self.series, self.sweeps, strict=True)}

    @property
    def unfinished(self) -> int:
        """Trials that are still to come."""
        return sum(record.unfinished for record in self.records)

    @property
    def title(self) -> str:
        """Heading of the report: the titles of the sweeps, else the models, or how many there are."""
        titles = list(dict.fromkeys(record.config.title or record.config.name for record in self.records))
        labels = list(
            dict.fromkeys(one.label for one, sweep in zip(self.series, self.sweeps, strict=True) if not sweep)
        )
        if labels and (titles or len(labels) > _MOST_NAMED):
            runs = sum(not sweep for sweep in self.sweeps)
            titles.append(f"{len(labels)} {'model' if len(labels) == 1 else 'models'} in {runs} runs")
        else:
            titles += labels
        return f"{', '.join(titles[:-1])} and {titles[-1]}" if len(titles) > 1 else "".join(titles)

    @property
    def stopped(self) -> int:
        """Runs that were stopped early."""
        return sum(one.state == PRUNED for one in self.series)

    @property
    def failed(self) -> int:
        """Trials of the sweeps that failed."""
        return sum(len(record.failures) for record in self.records)

    def only(self, chosen: Sequence[Series], loose: Sequence[Series] = ()) -> Gathered:
        """Return a part: some of the series with their sweeps, and further runs that belong to none."""
        kept = {id(one) for one in chosen}
        pairs = [(one, name) for one, name in zip(self.series, self.sweeps, strict=True) if id(one) in kept]
        studies = {name for _, name in pairs}
        pairs += [(one, "") for one in loose]
        records = [record for record in zip(self.records, self.marks, strict=True) if record[0].study in studies]
        return Gathered(
            tuple(record for record, _ in records),
            tuple(mark for _, mark in records),
            tuple(one for one, _ in pairs),
            tuple(name for _, name in pairs),
        )

    def legend(self) -> list[str]:
        """Return which sweep each mark stands for; nothing where there is one sweep."""
        pairs = zip(self.marks, self.records, strict=True)
        return [f"{mark}{record.study} ({record.directory})" for mark, record in pairs if mark]


def gather(records: Sequence[SweepRecord]) -> Gathered:
    """Return sweeps put together.

    Args:
        records: One or more sweeps.

    Raises:
        SweepError: No trial has an evaluation after training began.
    """
    found = join(records)
    if not any(one.trained for one in found.series):
        raise SweepError(nothing_yet(records))
    return found


def join(records: Sequence[SweepRecord]) -> Gathered:
    """Return sweeps put together, whether they have a result or not; their series stay in order.

    Args:
        records: The sweeps.
    """
    several = len(records) > 1
    marks = [f"{_letter(number)}: " if several else "" for number in range(len(records))]
    series: list[Series] = []
    sweeps: list[str] = []
    for mark, record in zip(marks, records, strict=True):
        for one in record.series:
            slug = one.slug or one.label
            series.append(replace(one, label=f"{mark}{one.label}", slug=f"{mark}{slug}" if mark else slug))
            sweeps.append(record.study)
    return Gathered(tuple(records), tuple(marks), tuple(series), tuple(sweeps))


def _letter(number: int) -> str:
    return ascii_uppercase[number] if number < len(ascii_uppercase) else f"S{number + 1}"


def nothing_yet(records: Sequence[SweepRecord]) -> str:
    """Return the sentence for sweeps without a single result."""
    failures = [failure for record in records for failure in record.failures]
    places = " and ".join(str(record.directory) for record in records)
    left = sum(record.unfinished for record in records)
    failed = f", {len(failures)} failed (the first: {failures[0].reason})" if failures else ""
    return f"no trial of {places} has a result yet ({left} to come{failed}): let the sweep run, and report on it then"
