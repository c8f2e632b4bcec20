"""`calm eval`: score a finished model, and say how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calm_lightning.cli import options, recording

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from calm_lightning.data.texts import EvaluationText
    from calm_lightning.data.tokenizers import Tokenizer
    from calm_lightning.metrics.brier_lm import BrierLMResult
    from calm_lightning.models import OpenModel
    from calm_lightning.programs.evaluation import Evaluation


class ProtocolName(StrEnum):
    """How start positions are chosen."""

    aligned = "aligned"
    released = "released"


def evaluate(
    context: typer.Context,
    model: options.Model,
    text: Annotated[
        Path | None, typer.Option(help="Score on this file: .txt (one document) or .jsonl[.zst|.gz] (the Pile's).")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Score on this split of the run's corpus.", show_default="the run's eval_split")
    ] = "",
    protocol: Annotated[
        ProtocolName, typer.Option(help="aligned: same start positions for all models; released: as the authors.")
    ] = ProtocolName.aligned,
    block_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per block.", show_default="trained")] = None,
    samples: Annotated[
        int | None, typer.Option(min=2, help="Samples per start position.", show_default="the run's; released: 2")
    ] = None,
    start_stride: Annotated[
        int | None, typer.Option(min=1, help="aligned: tokens between start positions.", show_default="the run's")
    ] = None,
    precision: options.Precision = options.PrecisionName.auto,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per batch.", show_default="the run's")] = None,
    max_blocks: Annotated[int | None, typer.Option(min=1, help="Read this many evenly spaced blocks.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    sampling_steps: options.SamplingSteps = None,
    solver: options.Solver = None,
    autoencoder: options.Autoencoder = None,
    tokenizer: options.Tokenizer = "",
    as_json: options.AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON document to this file, too.")] = None,
    mlflow: recording.WithMlflow = None,
) -> None:
    """Score a language model with BrierLM, or an autoencoder by its reconstruction.

    Every score carries its protocol. Scores with different protocols are not comparable: the block length alone
    moves BrierLM by about 30 percent.

    Example: calm eval runs/calm/calm-K4-l128-N8-d192-s0-0123456789 --split test
    """
    from calm_lightning.errors import ConfigError
    from calm_lightning.models import open_model
    from calm_lightning.programs.evaluation import EvaluationOptions
    from calm_lightning.programs.evaluation import evaluate as run_evaluation

    if text is not None and split:
        raise ConfigError("--text and --split exclude each other: score on a file or on a split of the run's corpus")
    if out is not None:
        _check_out(out, text)
    chosen = EvaluationOptions(
        protocol.value, block_tokens, samples, start_stride, precision.value, batch_tokens, max_blocks, seed
    )
    opened = open_model(model, autoencoder=autoencoder, sampling_steps=sampling_steps, solver=solver)
    recorded = recording.find_store(model, mlflow)
    found_text = _read_text(opened, text, tokenizer) if text is not None else _open_split(opened, split)
    with _progress_bar(hidden=as_json) as on_batch:
        found = run_evaluation(opened, found_text, chosen, on_batch)
    _report(found, model, as_json, out)
    if recorded is not None:
        recording.record(recorded, opened, found, text, context, quiet=as_json)


def _report(found: Evaluation, model: Path, as_json: bool, out: Path | None) -> None:
    """Print tables or the JSON document, and write the document where asked."""
    import json

    from rich.console import Console

    document = json.dumps({"path": str(model), **found.to_dict()}, indent=2)
    if out is not None:
        _write(out, document + "\n")
    if as_json:
        typer.echo(document)
    else:
        _show(Console(), found)


@contextmanager
def _progress_bar(hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """Show how many blocks are done, on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as bar:
        task = bar.add_task("blocks")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _open_split(opened: OpenModel, split: str) -> EvaluationText:
    """Return a split of the corpus that a run was trained on."""
    from calm_lightning.data.texts import CorpusSplit
    from calm_lightning.errors import DataError

    data = opened.config.data
    if not data.corpus:
        raise DataError(f"{opened.path} names no corpus: say what to score it on with --text FILE")
    if "://" not in data.corpus and not Path(data.corpus).is_dir():
        raise DataError(
            f"the corpus {data.corpus} of {opened.path} is not there (its path may be relative to the directory it was "
            f"trained from): run the command there, or say what to score with --text FILE"
        )
    return CorpusSplit(data, split or data.eval_split)


def _read_text(opened: OpenModel, path: Path, tokenizer: str) -> EvaluationText:
    """Return the documents of a text file in ids of the model's tokenizer."""
    from calm_lightning.data.texts import PackedText

    return PackedText(_documents(path), _tokenizer(opened, tokenizer))


def _tokenizer(opened: OpenModel, spec: str) -> Tokenizer:
    from calm_lightning.data.tokenizers import make_tokenizer
    from calm_lightning.errors import DataError

    if spec:
        return make_tokenizer(spec, ())
    if opened.tokenizer is None:
        raise DataError(
            f"{opened.path} carries no tokenizer, so --text cannot be read: name the one it was trained with, "
            f"for example --tokenizer llama3"
        )
    return opened.tokenizer


def _documents(path: Path) -> Iterator[tuple[str, str]]:
    """Yield text and domain of every document of a file, in order."""
    from calm_lightning.errors import DataError
    from data_pipelines.reading.sources import find_sources, read_documents

    if not path.is_file():
        raise DataError(f"text file {path} does not exist")
    for source in find_sources([path]):
        for document in read_documents(source):
            yield document.text, document.domain


def _check_out(out: Path, text: Path | None) -> None:
    """Refuse a place for the JSON document before anything is computed.

    Raises:
        ConfigError: It is a directory, a device, the text itself, or cannot be written to.
    """
    import os

    from calm_lightning.errors import ConfigError

    if out.exists() and not out.is_file():
        raise ConfigError(f"--out {out} is no ordinary file: name a file to write")
    if text is not None and out.exists() and out.samefile(text):
        raise ConfigError(f"--out {out} is the text to be scored: name another file")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ConfigError(f"--out {out}: {out.parent} is no directory that can be written to")


def _write(path: Path, content: str) -> None:
    """Write a file whole or not at all.

    Raises:
        ConfigError: It cannot be written.
    """
    import os

    from calm_lightning.errors import ConfigError

    scratch = path.with_name(path.name + ".tmp")
    try:
        scratch.write_text(content, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise ConfigError(f"--out {path} cannot be written: {error.strerror}") from None


def _show(console: Console, found: Evaluation) -> None:
    """Print tables, what is to be kept in mind, and the protocol."""
    if found.score is not None:
        for title, table in _score_tables(found.score, found.K):
            console.print(title, table, highlight=False)
        for remark in _remarks(found):
            console.print(remark, highlight=False, markup=False)
    if found.reconstruction is not None:
        console.print("Reconstruction", _reconstruction_table(found), highlight=False)
    trained, used = found.trained_block_tokens, found.protocol.block_tokens
    if trained != used:
        console.print(
            f"Blocks of {used:,} tokens were scored, {trained:,} were trained: the block length is part of a result.",
            highlight=False,
        )
    console.print(found.protocol.describe(), style="dim", highlight=False, markup=False, soft_wrap=True)
    speed = found.protocol.tokens / found.seconds
    console.print(f"{found.seconds:.1f} s, {speed:,.0f} text tokens per second", style="dim", highlight=False)


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    return table


def _score_tables(score: BrierLMResult, K: int) -> Iterator[tuple[str, Table]]:
    """Yield titles and tables: BrierLM and its parts, by domain where there are several, and the tokens by offset."""
    from rich.text import Text  # a domain's name may look like markup

    rows = {"all": score, **(score.domains if len(score.domains) > 1 else {})}
    table = _table("text", "BrierLM [95 %]", "positions", "documents")
    for name, row in rows.items():
        interval = f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"
        table.add_row(Text(name), interval, f"{row.positions:,}", f"{row.documents:,}")
    yield "BrierLM, percent", table
    table = _table("text", *(f"Brier-{n} (SE)" for n in range(1, 5)))
    for name, row in rows.items():
        table.add_row(Text(name), *map(_with_error, row.brier, row.brier_standard_error))
    yield "Its factors, percent: the next n tokens as one outcome", table
    table = _table("offset", "Brier-1 (SE)", *(["chunk"] if 1 < K < len(score.offsets) else []))
    for number, cell in enumerate(map(_with_error, score.offsets, score.offsets_standard_error), start=1):
        table.add_row(str(number), cell, *([str((number - 1) // K + 1)] if 1 < K < len(score.offsets) else []))
    yield "The single token at each offset after a start position, percent", table


def _with_error(value: float, error: float) -> str:
    return f"{value:.2f} ({error:.2f})"


def _remarks(found: Evaluation) -> Iterator[str]:
    """Yield what a reader of a language model's numbers should know."""
    score, protocol = found.score, found.protocol
    assert score is not None
    if score.zeroed:
        worst = min(range(4), key=lambda n: score.brier[n])
        yield f"BrierLM is 0 by definition: the mean of Brier-{worst + 1} is {score.brier[worst]:.3g}, not above 0."
    if score.units < 2:
        yield "All positions are of one document in one block: the error is unknown, the interval is all there is."
    elif score.unit == "piece":
        yield (
            f"Errors are over {score.units} pieces of documents, one per document and block: {score.documents} "
            f"documents are too few to resample. Pieces of one document are alike, so the true error is larger."
        )
    else:
        yield f"Errors are over {score.units} {score.unit}s (95 % bootstrap interval)."
    if score.degenerate:
        yield "All of them score exactly alike: resampling sees no spread, which does not mean that there is none."
    if protocol.name == "aligned":
        yield (
            f"Compare models at the same --block-tokens (here {protocol.block_tokens:,}) and --start-stride (here "
            f"{protocol.start_stride})."
        )


def _reconstruction_table(found: Evaluation) -> Table:
    """Return what an autoencoder restores."""
    from calm_lightning.metrics.names import UNITS, VAL_ACCURACY_MEAN, VAL_ACCURACY_SAMPLED, VAL_CROSS_ENTROPY, VAL_KL

    assert found.reconstruction is not None
    table = _table("metric", "value", "unit")
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for label, value, name in (
        ("token accuracy, z = mu", found.reconstruction.accuracy_mean, VAL_ACCURACY_MEAN),
        ("token accuracy, z sampled", found.reconstruction.accuracy_sampled, VAL_ACCURACY_SAMPLED),
        ("cross-entropy, z sampled", found.reconstruction.cross_entropy, VAL_CROSS_ENTROPY),
        ("KL", found.reconstruction.kl, VAL_KL),
    ):
        table.add_row(label, f"{value:.6g}", UNITS[name])
    return table
