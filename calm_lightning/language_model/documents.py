"""Where attention begins when it keeps to documents.

A block of training text holds documents end to end. A token belongs to its document, a separator to the one it
precedes, and a chunk to the document of its last token: a chunk that straddles a border is the first that the later
document sees, and is seen by no other. The first token of a document is still predicted, from the last position of the
document before it. Documents are contiguous, so one number per position says all: the first position that it sees.

Shape suffixes: B blocks, T tokens, L positions (tokens or chunks), K tokens per chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calm_lightning.errors import DataError
from calm_lightning.language_model.config import LanguageModelConfig


def document_begins(documents_BT: Tensor, K: int = 1) -> Tensor:
    """Return the first position of the document of each position, int64, (B, L).

    Args:
        documents_BT: Document of every token, any numbers that differ between neighbours, (B, T), T a multiple of K.
        K: Tokens per position.
    """
    document_BL = documents_BT[:, K - 1 :: K]
    position_L = torch.arange(document_BL.shape[1], device=document_BL.device)
    begins_BL = position_L.expand_as(document_BL).clone()
    begins_BL[:, 1:] *= document_BL[:, 1:] != document_BL[:, :-1]
    return begins_BL.cummax(1).values


def first_seen(config: LanguageModelConfig, documents_BT: Tensor | None, K: int = 1) -> Tensor | None:
    """Return the first position that each position of a model sees, (B, L), or None where it sees all before it.

    Args:
        config: The model's configuration.
        documents_BT: Document of every token, (B, T); not looked at where the model attends across documents.
        K: Tokens per position.

    Raises:
        DataError: The model keeps to documents, and they are not known.
    """
    if config.cross_document_attention:
        return None
    if documents_BT is None:
        raise DataError(
            "model.cross_document_attention=false needs the document of every token, which these token batches do not "
            "carry: let the data loader add documents, or set model.cross_document_attention=true"
        )
    return document_begins(documents_BT, K)


def last_document(config: LanguageModelConfig, prompt_T: Tensor, documents_T: Tensor | None, K: int = 1) -> Tensor:
    """Return what a model sees of a prompt from its end: all of it, or the positions of its last document.

    Args:
        config: The model's configuration.
        prompt_T: Token ids, (T,).
        documents_T: Document of each, (T,); None means that there is one.
        K: Tokens per position; the grid of positions ends with the prompt.
    """
    if config.cross_document_attention or documents_T is None or len(prompt_T) < K:
        return prompt_T
    remainder = len(prompt_T) % K
    begins_1L = document_begins(documents_T[remainder:].unsqueeze(0), K)
    return prompt_T[remainder + K * int(begins_1L[0, -1]) :]
