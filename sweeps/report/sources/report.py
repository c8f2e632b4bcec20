"""What was read, put together: groups of runs that compare, and what each of them shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from calm_lightning.errors import SweepError
from sweeps.front.series import Series
from sweeps.report.findings import Findings, find
from sweeps.report.gathering import Gathered, join, nothing_yet
from sweeps.report.sources import protocols
from sweeps.report.sources.evaluations import LaterEvaluation, find_evaluations
from sweeps.report.sources.material import Material, Progress, quietly
from sweeps.report.sources.run import ReportedRun
from sweeps.report.sources.series import series_of


@dataclass(frozen=True)
class Group:
    """Runs whose scores compare, and what they show.

    Attributes:
        name: "" where all runs compare, else "Group 1" and so on.
        apart: What sets it apart from the other groups; "" where there are none.
        runs: Its runs.
        findings: What they show.
    """

    name: str
    apart: str
    runs: tuple[ReportedRun, ...]
    findings: Findings

    @property
    def heading(self) -> str:
        """Name, and what sets it apart; "" where all runs compare."""
        return f"{self.name}: {self.apart}" if self.name else ""


@dataclass(frozen=True)
class Report:
    """What a page shows.

    Attributes:
        title: Heading.
        gathered: All runs with scores and the sweeps; None where no run has a score.
        groups: The runs that compare with each other, the largest group first; none where no run has a score.
        apart: What differs between the groups, in words; empty where there is one.
        models: Language models, each once, those without an evaluation yet included.
        autoencoders: Autoencoders that were named, or are used by the language models and at hand.
        evaluations: Scores that the language models got after training.
        remarks: What could not be read, in sentences.
        command: The command that makes the report anew.
    """

    title: str
    gathered: Gathered | None
    groups: tuple[Group, ...]
    apart: tuple[str, ...]
    models: tuple[ReportedRun, ...]
    autoencoders: tuple[ReportedRun, ...]
    evaluations: tuple[LaterEvaluation, ...]
    remarks: tuple[str, ...]
    command: str

    @property
    def runs(self) -> tuple[ReportedRun, ...]:
        """All runs, autoencoders first."""
        return (*self.autoencoders, *self.models)


def make_report(
    material: Material,
    command: str,
    *,
    title: str = "",
    findings: Findings | None = None,
    progress: Progress = quietly,
) -> Report:
    """Put together what was read.

    Args:
        material: What was read.
        command: The command that makes the report anew.
        title: Heading; "" finds one.
        findings: What sweeps show, where that is known already and there are no other runs.
        progress: Is told how much of how much is done, and what is being done.

    Raises:
        SweepError: Nothing has a result yet.
    """
    everything = join(material.records)
    scored = [run for run in material.models if run.points]
    parts = [part for part in protocols.comparable(scored) if any(run.trained for run in part)]
    if not parts and not any(material.autoencoders[key].evaluations for key in material.asked):
        raise SweepError(_nothing(material))
    gathered = [_gather(material, everything, part) for part in parts]
    groups = []
    for number, (part, one) in enumerate(zip(parts, gathered, strict=True), start=1):
        progress(number - 1, len(parts), "what the runs show")
        known = findings if findings is not None and len(parts) == 1 else find(one)
        name, apart = ("", "") if len(parts) == 1 else (f"Group {number}", protocols.in_words(part, parts))
        groups.append(Group(name, apart, tuple(part), known))
    loose = _loose(gathered)
    evaluations, unread = find_evaluations(material.models)
    whole = replace(everything, series=(*everything.series, *loose), sweeps=(*everything.sweeps, *([""] * len(loose))))
    return Report(
        title=title or (whole.title if parts else _names(list(material.autoencoders.values()))),
        gathered=whole if parts else None,
        groups=tuple(groups),
        apart=tuple(protocols.differences(parts)) if len(parts) > 1 else (),
        models=tuple(material.models),
        autoencoders=tuple(material.autoencoders.values()),
        evaluations=tuple(evaluations),
        remarks=(*material.remarks, *unread),
        command=command,
    )


def _gather(material: Material, everything: Gathered, part: Sequence[ReportedRun]) -> Gathered:
    """Return the series of runs that compare: those of sweeps as these call them, the others by what they differ in."""
    inside = {id(run) for run in part}
    chosen = [one for one, run in zip(everything.series, material.trials, strict=True) if id(run) in inside]
    return everything.only(
        chosen, series_of([run for run in material.loose.values() if id(run) in inside], material.autoencoders)
    )


def _loose(parts: Sequence[Gathered]) -> list[Series]:
    pairs = [pair for part in parts for pair in zip(part.series, part.sweeps, strict=True)]
    return [one for one, sweep in pairs if not sweep]


def _names(runs: Sequence[ReportedRun]) -> str:
    names = list(dict.fromkeys(run.name for run in runs))
    return names[0] if len(names) == 1 else f"{len(names)} autoencoders"


def _nothing(material: Material) -> str:
    """Return the sentence for runs without a single result."""
    if material.records and not material.loose:
        return nothing_yet(material.records)
    runs = [*material.loose.values(), *(material.autoencoders[key] for key in sorted(material.asked))]
    named = ", ".join(f"{run.name} ({run.state_in_words()})" for run in runs[:4])
    more = f" and {len(runs) - 4} more" if len(runs) > 4 else ""
    return f"no evaluation of {named}{more} is there yet: train on, and report when there is one"
