"""`calm sweep scaling`: a law of BrierLM in training FLOPs and K, and which K a budget wants."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calm_lightning.cli import options

if TYPE_CHECKING:
    from sweeps.front.series import Series
    from sweeps.scaling.advice import Advice
    from sweeps.scaling.fitting import Fit


class PointsName(StrEnum):
    """Which evaluations are fitted."""

    all = "all"
    last = "last"
    envelope = "envelope"


class TargetName(StrEnum):
    """Which score is fitted."""

    brier_lm = "brier_lm"
    brier_1 = "brier_1"
    brier_2 = "brier_2"
    brier_3 = "brier_3"
    brier_4 = "brier_4"


def scaling(
    places: Annotated[
        list[Path], typer.Argument(metavar="SWEEP...", help="Sweeps: directories, names, or files such as points.csv.")
    ],
    budget: Annotated[
        list[float] | None,
        typer.Option(metavar="FLOPS", help="Training FLOPs to ask about; may be repeated.", show_default="largest"),
    ] = None,
    target: Annotated[TargetName, typer.Option(help="The score that is fitted.")] = TargetName.brier_lm,
    points: Annotated[
        PointsName, typer.Option(help="Fit all evaluations, the last of each complete trial, or each K's own front.")
    ] = PointsName.all,
    law: Annotated[
        str, typer.Option(metavar="NAME", help="auto, or a law of the printed list, for example moving-optimum.")
    ] = "auto",
    parameters: Annotated[
        float | None,
        typer.Option(min=1, help="Size asked about, where the law has one.", show_default="each K's"),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials that each K must have.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the draws behind probabilities.")] = 0,
    work_dir: Annotated[Path, typer.Option(help="Directory that holds run directories.")] = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where files go.", show_default="the first place")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Fit a scaling law with K in it and say which K a budget wants.

    Reads the evaluations of one or several sweeps, prints the law, what each K gives at the budget and a verdict, and
    writes scaling.png and scaling.json. Refuses where the points cannot support a fit.

    Example: calm sweep scaling explore-sample --budget 1e13
    """
    import json

    from sweeps.directory import find_sweep_directory
    from sweeps.scaling.advice import advise
    from sweeps.scaling.fitting import fit
    from sweeps.scaling.places import read_places
    from sweeps.scaling.settings import FitSettings
    from sweeps.scaling.tables import to_document

    settings = FitSettings(target=target.value, points=points.value, law=law, least_trials=trials, seed=seed)
    places = [place if place.is_file() else find_sweep_directory(place, work_dir) for place in places]
    series = read_places(places)
    found = fit(series, settings)
    largest = min(high for _, high in found.flops.values())
    advice = [advise(found, flops, parameters) for flops in budget or [largest]]
    document = json.dumps({"places": [str(place) for place in places], **to_document(found, advice)}, indent=2)
    first = places[0] if places[0].is_dir() else places[0].parent
    files = _write(out or first, found, series, advice, document)
    if as_json:
        typer.echo(document)
    else:
        _show(found, advice, files)


def _write(
    place: Path, fit: Fit, series: Sequence[Series], advice: Sequence[Advice], document: str
) -> tuple[Path, ...]:
    """Write the document and, where matplotlib is installed, the figure.

    Raises:
        SweepError: The directory cannot be written to.
    """
    import importlib.util

    from sweeps.artifacts import write_whole

    def write_text(path: Path) -> None:
        path.write_text(document + "\n", encoding="utf-8")

    files = [write_whole(place / "scaling.json", write_text)]
    if importlib.util.find_spec("matplotlib") is None:
        typer.echo("no figure: matplotlib is not installed; run pip install 'calm-lightning[sweeps]'", err=True)
        return tuple(files)
    from sweeps.scaling.figures import draw_png

    return *files, write_whole(place / "scaling.png", lambda path: draw_png(path, fit, series, advice))


def _show(fit: Fit, advice: Sequence[Advice], files: Sequence[Path]) -> None:
    """Print the law, what it rests on, and the advice for every budget."""
    from rich.console import Console

    from sweeps.scaling.tables import advice_table, coefficient_table, law_in_words, law_table, optimum_in_words, used

    console = Console()

    def say(sentence: str) -> None:
        console.print(sentence, highlight=False, markup=False)

    console.print(coefficient_table(fit))
    say(law_in_words(fit))
    for sentence in used(fit):
        say(sentence)
    console.print("", law_table(fit), sep="\n")
    for one in advice:
        console.print("", advice_table(fit, one), sep="\n")
        say(optimum_in_words(one))
        say(one.verdict)
    if any(choice.prediction.extrapolated for one in advice for choice in one.choices):
        say("* beyond what was observed for this K")
    say("")
    for path in files:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)
