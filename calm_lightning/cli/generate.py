"""`calm generate`: continue prompts with a trained model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calm_lightning.cli import options

if TYPE_CHECKING:
    from calm_lightning.programs.generation import Generation, GenerationOptions


class MethodName(StrEnum):
    """Temperature algorithms."""

    batch = "batch"
    exact = "exact"


class AlignName(StrEnum):
    """What is done with the end of a prompt that does not fill a chunk."""

    auto = "auto"
    match = "match"
    cut = "cut"


def generate(
    model: options.Model,
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; may be given several times.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts, one per line.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens per prompt.")] = 128,
    temperature: Annotated[
        str, typer.Option(help="Such as 0.5 or 1/3, in (0, 1]; --method batch: 1 or 1/n; a baseline: any above 0.")
    ] = "0.5",
    samples: Annotated[int, typer.Option(min=1, help="batch: pool size S per chunk.")] = 200,
    method: Annotated[MethodName, typer.Option(help="batch: fixed cost; exact: no bias, cost unknown.")] = (
        MethodName.batch
    ),
    budget: Annotated[
        int, typer.Option(min=1, help="Most samples per chunk (exact) and for matching a prompt's end.")
    ] = 10_000,
    align: Annotated[
        AlignName, typer.Option(help="A prompt's end that fills no chunk: match it, or cut the beginning.")
    ] = AlignName.auto,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts continued together.")] = 8,
    precision: options.Precision = options.PrecisionName.auto,
    sampling_steps: options.SamplingSteps = None,
    solver: options.Solver = None,
    autoencoder: options.Autoencoder = None,
    tokenizer: options.Tokenizer = "",
    as_json: options.AsJson = False,
) -> None:
    """Continue text with a language model. One prompt is printed as it is drawn, several when all are done.

    Prompts are read as beginnings of documents. Text ends where the model ends the document, or at --tokens.

    Example: calm generate runs/calm/calm-K4-l128-N8-d192-s0-0123456789 --prompt "The meaning of" --temperature 0.5
    """
    from calm_lightning.data.tokenizers import make_tokenizer
    from calm_lightning.models import open_model
    from calm_lightning.programs.generation import GenerationOptions, generate_text, ignore_text

    heat = _temperature(temperature)
    texts = [*_checked(prompt or []), *(_read_prompts(prompts) if prompts else [])]
    chosen = GenerationOptions(
        tokens, heat, samples, method.value, budget, align.value, seed, batch_size, precision.value
    )
    opened = open_model(model, autoencoder=autoencoder, sampling_steps=sampling_steps, solver=solver)
    given = make_tokenizer(tokenizer, ()) if tokenizer else None
    streaming = len(texts) == 1 and not as_json
    terminal = _Terminal(texts[0]) if streaming else None
    found = generate_text(opened, texts, chosen, given, terminal.show if terminal else ignore_text)
    if as_json:
        typer.echo(_document(model, chosen, found))
        return
    if terminal:
        terminal.show(0, "\n")
    else:
        for number, one in enumerate(found.continuations, start=1):
            typer.echo(f"--- {number}\n{one.prompt}{one.text}")
    _remarks(found)


def _checked(prompts: list[str]) -> list[str]:
    """Return prompts of the command line.

    Raises:
        DataError: One is not valid UTF-8: its bytes arrive as halves of surrogate pairs.
    """
    from calm_lightning.errors import DataError

    for number, text in enumerate(prompts, start=1):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"--prompt number {number} is not valid UTF-8")
    return prompts


def _temperature(text: str) -> float:
    """Return a number that is written as one, or as a fraction such as 1/3.

    Raises:
        SamplingError: It is neither.
    """
    from calm_lightning.errors import SamplingError

    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise SamplingError(f"temperature {text!r} is not a number such as 0.5 or 1/3") from None


class _Terminal:
    """Shows a prompt and its text as it comes; nothing before there is any, which leaves errors alone on the screen."""

    def __init__(self, prompt: str) -> None:
        self._waiting = prompt

    def show(self, number: int, piece: str) -> None:
        """Print a piece of text at once."""
        typer.echo(self._waiting + piece, nl=False)
        self._waiting = ""


def _read_prompts(path: Path) -> list[str]:
    """Return the lines of a file that are not blank.

    Raises:
        DataError: It cannot be read, or holds none.
    """
    from calm_lightning.errors import DataError

    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"the file of prompts {path} cannot be read: {reason}") from None
    if not lines:
        raise DataError(f"the file of prompts {path} has no line that is not blank")
    return lines


def _remarks(found: Generation) -> None:
    """Say on stderr what was done to the prompts, and how fast the text came."""
    for number, one in enumerate(found.continuations, start=1):
        if one.left_out:
            typer.echo(
                f"prompt {number}: its {_count(one.left_out, 'oldest token')} (document border included) left out, so "
                f"that it ends with a chunk",
                err=True,
            )
    tokens = sum(len(one.tokens) for one in found.continuations)
    typer.echo(
        f"{_count(tokens, 'token')} in {found.seconds:.1f} s: {found.tokens_per_second:,.1f} tokens per second "
        f"({found.precision})",
        err=True,
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _document(model: Path, options: GenerationOptions, found: Generation) -> str:
    """Return everything as JSON: how it was drawn, and what."""
    import json
    from dataclasses import asdict

    how = asdict(options) | {"precision": found.precision}
    speed = {"seconds": found.seconds, "tokens_per_second": found.tokens_per_second}
    texts = [asdict(one) for one in found.continuations]
    return json.dumps({"model": str(model), **how, **speed, "continuations": texts}, indent=2, ensure_ascii=False)
