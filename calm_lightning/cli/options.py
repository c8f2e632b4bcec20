"""Arguments and options that several commands share: what uses a finished model takes them all."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class PrecisionName(StrEnum):
    """Arithmetic of the networks."""

    auto = "auto"
    full = "32-true"
    bf16 = "bf16-mixed"


Model = Annotated[Path, typer.Argument(help="Run directory, or directory of a released checkpoint.")]
Autoencoder = Annotated[str | None, typer.Option(metavar="DIR", help="Use the autoencoder of this directory.")]
Tokenizer = Annotated[
    str, typer.Option(metavar="SPEC", help="For a model without one: bytes, llama3, llama3:PATH or file:PATH.")
]
SamplingSteps = Annotated[
    int | None, typer.Option(min=1, help="Steps of a flow or diffusion head.", show_default="the run's")
]
Solver = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="flow: midpoint, euler; diffusion: ddpm, ddim.", show_default="the run's"),
]
Precision = Annotated[PrecisionName, typer.Option(help="auto: bf16 where the hardware has it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON document and nothing else.")]
