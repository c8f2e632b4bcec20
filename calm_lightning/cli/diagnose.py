"""`calm diagnose`: what the method's critics ask, measured on a finished model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calm_lightning.cli import options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from calm_lightning.data.texts import EvaluationText
    from calm_lightning.diagnostics.report import Finding
    from calm_lightning.models import OpenModel


def diagnose(
    model: options.Model,
    baseline: Annotated[Path | None, typer.Option(metavar="RUN", help="Token model to stand beside it.")] = None,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="Held-out text; default: the corpus.")] = None,
    split: Annotated[str, typer.Option(help="Split of the model's corpus.")] = "test",
    only: Annotated[
        str, typer.Option(metavar="NAMES", help="drift, roundtrip, noise, calibration, foreign; comma between.")
    ] = "",
    foreign: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="One more text for foreign; may be repeated.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Held-out tokens that each diagnosis but drift reads.")] = 32_768,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts that drift continues.")] = 32,
    length: Annotated[int, typer.Option(min=0, help="Tokens drift generates per prompt; 0: two trained blocks.")] = 0,
    samples: Annotated[int, typer.Option(min=2, help="Pool size S below T = 1.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where files go; default diagnosis/MODEL.")] = None,
    sampling_steps: options.SamplingSteps = None,
    solver: options.Solver = None,
    autoencoder: options.Autoencoder = None,
    tokenizer: options.Tokenizer = "",
    as_json: options.AsJson = False,
) -> None:
    """Ask of a model: drift, round trips, noise, calibration, foreign text.

    Prints a table per question and writes diagnosis.json, rows.csv and, with matplotlib, a figure per question.
    Files are written after each question, and replace those of an earlier call in the same directory.

    Example: calm diagnose runs/calm/NAME --baseline runs/baseline/NAME --only drift,calibration
    """
    import json

    from rich.console import Console

    from calm_lightning.diagnostics.report import to_dict
    from calm_lightning.models import open_model
    from calm_lightning.programs.diagnosis import DiagnosisOptions, settings, with_tokenizer
    from calm_lightning.programs.diagnosis import diagnose as ask

    name = model.resolve().name
    names = tuple(name.strip() for name in only.split(",") if name.strip())
    chosen = DiagnosisOptions(names, tokens, prompts, length, samples=samples, seed=seed)
    with _directory(out or Path("diagnosis") / name) as place, Console(stderr=True).status("opening") as line:
        opened = open_model(model, autoencoder=autoencoder, sampling_steps=sampling_steps, solver=solver)
        opened = with_tokenizer(opened, tokenizer)
        other = open_model(baseline) if baseline else None
        held_out, extra = _held_out(opened, text, split), _foreign_texts(foreign or [])
        made = settings(opened, held_out, chosen, other)
        source = text.name if text else f"{split} split"
        console, files = Console(quiet=as_json), _Files(place, made, f"{name} · {source} · seed {seed}")
        for finding in ask(opened, held_out, chosen, baseline=other, foreign_texts=extra, on_step=line.update):
            line.stop()  # while it turns, what is printed would go where it is shown
            files.add(finding)
            _show(console, finding)
            line.start()
    if as_json:
        typer.echo(json.dumps(to_dict(files.findings, made), indent=2, ensure_ascii=False))
    for path in files.written:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _directory(place: Path) -> Iterator[Path]:
    """Make the output directory before any work is done; take it away again if it stays empty.

    Raises:
        ConfigError: It cannot be made or written to.
    """
    import tempfile

    from calm_lightning.errors import ConfigError

    made: list[Path] = []
    try:
        try:
            made = [folder for folder in (place, *place.parents) if not folder.exists()]
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise ConfigError(
                f"files cannot be written to {place} ({error.strerror}): name another directory with --out DIR"
            ) from None
        yield place
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


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
            raise CheckpointError(
                f"{opened.path} carries no tokenizer, so --text cannot be read: name the one it was trained with, "
                f"for example --tokenizer llama3"
            )
        return PackedText([(_read(text), text.name)], opened.tokenizer)
    if not opened.config.data.corpus:
        raise DataError(f"{opened.path} names no corpus: give a held-out text with --text FILE")
    return CorpusSplit(opened.config.data, split)


def _read(path: Path) -> str:
    """Return a file of text.

    Raises:
        DataError: It is not there, may not be read, or is not UTF-8.
    """
    from calm_lightning.errors import DataError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"the text {path} cannot be read: {reason}") from None


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


class _Files:
    """What is written: all of it anew after every finding, so that an interrupted call keeps what it has found."""

    def __init__(self, place: Path, settings: Mapping[str, Any], subtitle: str) -> None:
        import importlib.util

        self.findings: list[Finding] = []
        self._place, self._settings, self._subtitle = place, settings, subtitle
        self._draws = importlib.util.find_spec("matplotlib") is not None
        self._tables: list[Path] = []
        self._figures: list[Path] = []

    @property
    def written(self) -> list[Path]:
        """The files, tables first."""
        return self._tables + self._figures

    def add(self, finding: Finding) -> None:
        """Write the tables with one more finding, and its figure where matplotlib is there to draw it."""
        from calm_lightning.diagnostics.report import write_files

        if not self.findings:
            self._begin()
        self.findings.append(finding)
        self._tables = write_files(self._place, self.findings, self._settings)
        if self._draws:
            from calm_lightning.diagnostics.figures import draw_png

            self._figures.append(self._place / f"{finding.name}.png")
            draw_png(self._figures[-1], finding, self._subtitle)

    def _begin(self) -> None:
        """Remove the figures of an earlier call, which would stand beside numbers that are not theirs."""
        from calm_lightning.programs.diagnosis import ANSWERS

        for name in ANSWERS:
            (self._place / f"{name}.png").unlink(missing_ok=True)
        if not self._draws:
            typer.echo("no figures: matplotlib is not installed; run pip install 'calm-lightning[sweeps]'", err=True)
