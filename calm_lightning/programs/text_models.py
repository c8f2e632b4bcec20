"""A finished run as a function of texts: a language model continues them, an autoencoder restores them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calm_lightning.errors import CheckpointError
from calm_lightning.models import OpenModel, open_model
from calm_lightning.programs.generation import GenerationOptions, generate_text
from calm_lightning.programs.restoring import restore_texts

TextModel = Callable[[Sequence[str], Mapping[str, Any]], list[str]]

_OWN_AUTOENCODER = "autoencoder"


def open_text_model(directory: Path) -> TextModel:
    """Open the files of a run, its autoencoder's beside them in `autoencoder/`, as a function of texts.

    Args:
        directory: The directory; nothing outside of it is looked at.

    Returns:
        A function of texts and settings. Settings of a language model: `max_new_tokens`, `temperature` and `seed`, with
        the defaults of `calm generate`; of an autoencoder: `sampled` (draw the latents instead of taking their means)
        and `seed`.

    Raises:
        CheckpointError: It does not hold a whole model.
    """
    below = directory / _OWN_AUTOENCODER
    opened = open_model(directory, autoencoder=str(below) if below.is_dir() else None)
    if opened.tokenizer is None:
        raise CheckpointError(f"{directory} carries no tokenizer: log the model again, from its run directory")

    def answer(texts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        if opened.stage == "autoencoder":
            return restore_texts(opened, texts, **settings)
        return _continue(opened, texts, **settings)

    return answer


def _continue(
    opened: OpenModel, texts: Sequence[str], max_new_tokens: int = 128, temperature: float = 0.5, seed: int = 0
) -> list[str]:
    """Return continuations, as `calm generate` draws them of the same prompts together."""
    if not texts:
        return []
    options = GenerationOptions(tokens=int(max_new_tokens), temperature=float(temperature), seed=int(seed))
    return [one.text for one in generate_text(opened, texts, options).continuations]
