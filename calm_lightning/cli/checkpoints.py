"""`calm import-hf` and `calm export-hf`: checkpoints in the authors' released format, in and out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calm_lightning.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table
    from torch import Tensor

    from calm_lightning.programs.exporting import Exported
    from calm_lightning.programs.importing import Imported

_KINDS = {"autoencoder": "autoencoder", "calm": "continuous language model", "baseline": "token language model"}


def import_hf(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory with config.json and weights.")],
    autoencoder: Annotated[
        Path | None,
        typer.Option(help="Its autoencoder: released format or a run; else the embedded one or one beside."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="SPEC", help="llama3, llama3:PATH, file:PATH, bytes or none.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory to make; default runs/imported/NAME.")] = None,
) -> None:
    """Import a checkpoint in the released format as a finished run.

    Every tensor is accounted for: what is missing, unknown or of another shape is listed by name. Weights keep their
    bits. Pickled .bin files are read as tensors only, never executed.

    Example: calm import-hf CALM-M --autoencoder CALM-Autoencoder
    """
    from rich.console import Console

    from calm_lightning.programs.importing import import_released

    console = Console()
    with console.status("reading"):
        imported = import_released(directory, out, autoencoder=autoencoder, tokenizer=tokenizer)
    _show_import(console, imported)


def export_hf(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Checkpoint directory to make.")],
    autoencoder: options.Autoencoder = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights; more become shards.")] = "5GB",
) -> None:
    """Write a finished run in the released format, for the authors' code to load.

    A continuous language model comes with its autoencoder: embedded, and as a checkpoint in OUT/autoencoder.

    Example: calm export-hf runs/imported/CALM-M exported/CALM-M
    """
    from rich.console import Console

    from calm_lightning.programs.exporting import export_run

    console = Console()
    with console.status("writing"):
        exported = export_run(run, out, max_shard_size, autoencoder)
    _show_export(console, exported)


def _rows(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column("what", style="dim", no_wrap=True)
    table.add_column("value", overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(name, Text(value))  # paths may hold what rich takes for markup
    return table


def _weights(tensors: Iterable[Tensor]) -> str:
    found = list(tensors)
    dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in found}))
    return f"{sum(tensor.numel() for tensor in found):,} in {len(found)} tensors ({dtypes})"


def _show_import(console: Console, imported: Imported) -> None:
    """Print what was imported, and the next command."""
    released, model, auto = imported.released, imported.released.model, imported.released.autoencoder
    latents = f"K={model.K}, l={model.latent_width()}, " if auto else ""
    shape = f"{latents}V={released.vocabulary:,}"
    if released.stage != "autoencoder":
        shape += f", d={model.d}, SwiGLU {model.intermediate}, {model.layers} layers, {model.heads} heads"
    if released.stage == "calm":
        shape += f"; {model.head} head of {model.head_blocks} blocks"
    elif auto:
        shape += f", d={auto.d}, SwiGLU {auto.intermediate}, {auto.encoder_layers}+{auto.decoder_layers} layers"
    codec = released.autoencoder_weights
    rows = [
        ("kind", f"{_KINDS[released.stage]} ({released.config['architectures'][0]})"),
        ("shape", shape),
        ("parameters", _weights(released.weights.values())),
        ("autoencoder", released.autoencoder_source),
        ("its parameters", _weights(codec.values()) if codec else ""),
        ("tokenizer", imported.tokenizer.kind if imported.tokenizer else "none"),
        ("block", f"{imported.config.data.block_tokens:,} tokens, the released context"),
        ("training FLOPs", "unknown (recorded as 0)"),
        ("identity", released.identity[:16]),
        ("run directory", str(imported.run_dir)),
    ]
    console.print(_rows(f"{'found' if imported.existed else 'imported'} {released.path}", rows), highlight=False)
    if imported.existed:
        console.print("this checkpoint had been imported there before: nothing was written now", highlight=False)
    for note in imported.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    missing = "" if imported.tokenizer else " --tokenizer SPEC"
    command = f"calm eval {shlex.quote(str(imported.run_dir))} --text FILE{missing}"
    console.print(f"next: {command}", soft_wrap=True, highlight=False, markup=False)


def _show_export(console: Console, exported: Exported) -> None:
    """Print what was exported, and how the authors' code finds it."""
    checkpoint, codec, out = exported.checkpoint, exported.autoencoder, exported.directory
    rows = [
        ("kind", checkpoint.config["architectures"][0]),
        ("parameters", f"{_weights(checkpoint.weights.values())}, second names and embedded ones included"),
        ("autoencoder", f"embedded (ae_model.*), and in {out / 'autoencoder'}" if codec else ""),
        ("directory", str(out)),
    ]
    console.print(_rows(f"exported {out}", rows), highlight=False)
    for note in [*checkpoint.notes, *(codec.notes if codec else [])]:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    if codec:
        place = shlex.quote(str(out / "autoencoder"))
        hint = f"the authors' scripts take it as --model_name_or_path, with --ae_name_or_path {place}"
        console.print(hint, soft_wrap=True, highlight=False, markup=False)
