"""The corpus of a sweep: where it lies, having it prepared, and what is known of it before it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from calm_lightning.errors import DataError
from sweeps.config import SweepConfig

if TYPE_CHECKING:
    from calm_lightning.data.shards.manifest import Manifest


def corpus_dir(sweep: SweepConfig, work_dir: Path) -> Path:
    """Return where the corpus of a sweep lies: a relative `corpus.out` is taken beside the work directory."""
    return work_dir.resolve().parent / sweep.corpus.out


def prepare_corpus(sweep: SweepConfig, out: Path) -> Manifest:
    """Prepare the corpus of a sweep, or find it prepared.

    Raises:
        DataError: A source or the tokenizer is unusable.
    """
    from data_pipelines.prepare import prepare

    return prepare(
        sweep.corpus.source,
        out,
        sweep.corpus.tokenizer,
        elsewhere="choose another directory with corpus.out=OTHER",
        replacing="delete it to have it made anew",
    )


def vocabulary_of(sweep: SweepConfig, corpus: Path) -> int | None:
    """Return the vocabulary size V of a corpus, whether it is prepared or not; None where only preparing it tells.

    Args:
        sweep: The sweep.
        corpus: Directory of its corpus.
    """
    from calm_lightning.data.shards.manifest import Manifest
    from calm_lightning.data.tokenizers import make_tokenizer

    try:
        return Manifest.load(corpus).vocabulary
    except DataError:
        kind, _, size = sweep.corpus.tokenizer.partition(":")
        if kind == "bpe":
            return int(size) if size.isdigit() else None
    try:
        return make_tokenizer(sweep.corpus.tokenizer, []).vocabulary
    except DataError:
        return None
