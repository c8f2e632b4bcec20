"""`calm diagnose`: what the method's critics ask, measured on a finished model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from calm_lightning.data.texts import EvaluationText
    from calm_lightning.diagnostics.report import Finding
    from calm_lightning.models import OpenModel


def diagnose(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run directory, or one in the released format.")],
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Token model of the same tokenizer, to stand beside it.")
    ] = None,
    autoencoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Its autoencoder, where it is not the model's own.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Held-out text, UTF-8; default: the corpus.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the model's corpus.")] = "test",
    only: Annotated[
        str, typer.Option(metavar="NAMES", help="drift, roundtrip, noise, calibration, foreign; comma between.")
    ] = "",
    foreign: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="One more text for foreign; may be repeated.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Held-out tokens that each diagnosis but drift reads.")] = 32_768,
    prompts: Annotated[int, typer.Option(help="Prompts that drift continues.")] = 32,
    length: Annotated[int, typer.Option(help="Tokens drift generates per prompt; 0: two trained blocks.")] = 0,
    samples: Annotated[int, typer.Option(help="Pool size S below T = 1.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where files go; default diagnosis/MODEL.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON and nothing else.")] = False,
) -> None:
    """Ask of a model: drift, round trips, noise, calibration, foreign text.

    Prints a table per question and writes diagnosis.json, rows.csv and, with matplotlib, a figure per question.

    Example: calm diagnose runs/calm/NAME --baseline runs/baseline/NAME --only drift,calibration
    """
    import json

    from rich.console import Console

    from calm_lightning.diagnostics.report import to_dict, write_files
    from calm_lightning.models import open_model
    from calm_lightning.programs.diagnosis import DiagnosisOptions, settings
    from calm_lightning.programs.diagnosis import diagnose as ask

    opened = open_model(model, autoencoder=str(autoencoder) if autoencoder else None)
    other = open_model(baseline) if baseline else None
    names = tuple(name.strip() for name in only.split(",") if name.strip())
    options = DiagnosisOptions(names, tokens, prompts, length, samples=samples, seed=seed)
    held_out, extra = _held_out(opened, text, split), _foreign_texts(foreign or [])
    console, findings = Console(quiet=as_json), []
    with Console(stderr=True).status("reading") as line:
        for finding in ask(opened, held_out, options, baseline=other, foreign_texts=extra, on_step=line.update):
            findings.append(finding)
            _show(console, finding)
    made = settings(opened, held_out, options, other)
    place = out or Path("diagnosis") / opened.path.resolve().name
    files = write_files(place, findings, made)
    source = text.name if text else f"{split} split"
    files += _draw(place, findings, f"{opened.path.resolve().name} · {source} · seed {seed}")
    if as_json:
        typer.echo(json.dumps(to_dict(findings, made), indent=2, ensure_ascii=False))
    for path in files:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _held_out(opened: OpenModel, text: Path | None, split: str) -> EvaluationText:
    """Return the text to measure on.

    Raises:
        CheckpointError: The model does not record its tokenizer, which a file needs.
        DataError: The file or the corpus cannot be read.
    """
    from calm_lightning.data.texts import CorpusSplit, PackedText
    from calm_lightning.errors import CheckpointError, DataError

    if text is not None:
        if opened.tokenizer is None:
            raise CheckpointError(f"{opened.path} does not record its tokenizer, so {text} cannot be read for it")
        return PackedText([(_read(text), text.name)], opened.tokenizer)
    if not opened.config.data.corpus:
        raise DataError(f"{opened.path} names no corpus: give a held-out text with --text FILE")
    return CorpusSplit(Path(opened.config.data.corpus), split)


def _read(path: Path) -> str:
    from calm_lightning.errors import DataError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from None


def _foreign_texts(given: Sequence[str]) -> dict[str, str]:
    """Return the texts of NAME=FILE options.

    Raises:
        ConfigError: An option has no name or no file.
    """
    from calm_lightning.errors import ConfigError

    texts = {}
    for one in given:
        name, _, path = one.partition("=")
        if not name or not path:
            raise ConfigError(f"--foreign {one} is not NAME=FILE, for example Latin=latin.txt")
        texts[name] = _read(Path(path))
    return texts


def _show(console: Console, finding: Finding) -> None:
    """Print a finding: its table, what it says and what it does not."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(finding.title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    widths = [max(map(len, column)) for column in zip(*finding.table, strict=True)]
    for place, (name, width) in enumerate(zip(finding.head, widths, strict=True)):
        table.add_column(Text(name), justify="right" if place else "left", min_width=width)
    for row in finding.table:
        table.add_row(*map(Text, row))
    console.print(table)
    for sentence in (finding.says, finding.limits):
        console.print(sentence, highlight=False, markup=False)
    console.print()


def _draw(place: Path, findings: Sequence[Finding], subtitle: str) -> list[Path]:
    """Draw a figure per finding and return the files; say so where matplotlib is missing."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        typer.echo("no figures: matplotlib is not installed; run pip install 'calm-lightning[sweeps]'", err=True)
        return []
    from calm_lightning.diagnostics.figures import draw_png

    paths = [place / f"{finding.name}.png" for finding in findings]
    for path, finding in zip(paths, findings, strict=True):
        draw_png(path, finding, subtitle)
    return paths
