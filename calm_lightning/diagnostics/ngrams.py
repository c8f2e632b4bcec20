"""Repetition and vocabulary of token sequences, without a loop over positions.

Shape suffixes: B or R rows, T tokens, V vocabulary, W windows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ngram_ids(tokens_RT: Tensor, n: int) -> Tensor:
    """Number the n-grams of all rows: equal n-grams, equal numbers, (R, T - n + 1). Cost: n sorts of R * T numbers.

    Numbers stay below R * T, so that appending a token of any vocabulary cannot overflow 64 bits.
    """
    _, id_RT = tokens_RT.unique(return_inverse=True)
    token_RT, kinds = id_RT, int(id_RT.max()) + 1
    for length in range(2, n + 1):
        pair_RT = id_RT[:, :-1] * kinds + token_RT[:, length - 1 :]
        _, id_RT = pair_RT.unique(return_inverse=True)
    return id_RT


def repeated(tokens_RT: Tensor, n: int) -> Tensor:
    """Return whether the n-gram that ends at each token occurred before in its row, bool (R, T); False before n - 1.

    Args:
        tokens_RT: Rows of tokens, (R, T).
        n: Length of the n-grams.
    """
    R, T = tokens_RT.shape
    id_RT = ngram_ids(tokens_RT, n)
    place_RT = torch.arange(id_RT.shape[1], device=id_RT.device).expand_as(id_RT)
    row_R1 = torch.arange(R, device=id_RT.device).unsqueeze(1)
    _, own_P = (row_R1 * (R * T) + id_RT).flatten().unique(return_inverse=True)
    first = torch.full((int(own_P.max()) + 1,), T, device=id_RT.device)
    first.scatter_reduce_(0, own_P, place_RT.flatten(), "amin")
    found_RT = torch.zeros(R, T, dtype=torch.bool, device=id_RT.device)
    found_RT[:, n - 1 :] = place_RT > first[own_P].view_as(place_RT)
    return found_RT


def distinct_share(tokens_RT: Tensor, n: int) -> Tensor:
    """Return the number of different n-grams of each row, divided by that of its n-grams (distinct-n), (R,).

    Source: Li et al., arXiv 1510.03055, distinct-1 and distinct-2.
    """
    id_RT = ngram_ids(tokens_RT, n).sort(dim=1).values
    return (1 + (id_RT[:, 1:] != id_RT[:, :-1]).sum(1)).float() / id_RT.shape[1]


def unigram_divergence(tokens_WP: Tensor, reference_N: Tensor, vocabulary: int) -> Tensor:
    """Return KL(p || q) of the tokens of each window to a reference text, nats, (W,).

    p are plain frequencies, q has half a count added to every token. A short window is far from any reference by
    chance, about (V - 1) / 2P nats at most: compare windows of the same size only.

    Args:
        tokens_WP: Tokens of each window, (W, P).
        reference_N: The reference, (N,).
        vocabulary: V.
    """
    W, P = tokens_WP.shape
    offset_W1 = torch.arange(W, device=tokens_WP.device).unsqueeze(1) * vocabulary
    p_WV = (tokens_WP + offset_W1).flatten().bincount(minlength=W * vocabulary).view(W, vocabulary) / P
    q_V = (reference_N.bincount(minlength=vocabulary) + 0.5) / (len(reference_N) + 0.5 * vocabulary)
    return torch.special.xlogy(p_WV, p_WV / q_V).sum(-1)
