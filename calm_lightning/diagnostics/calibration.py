"""Is a model calibrated? How often a sample is right, against how often two samples agree.

Of a calibrated model the truth is one more sample: at T = 1 accuracy equals collision rate, position by position and
hence in the mean. A model whose samples agree more often than they are right is too sure of itself.

Shape suffixes: B blocks, T tokens, G start positions per block, P = B * G, S samples of a pool, K tokens per chunk.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from calm_lightning.diagnostics.report import Finding, Row, cell, grouped_mean
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.sampling.codec import Codec, true_latents
from calm_lightning.sampling.continuations import baseline_probabilities, targets_at
from calm_lightning.sampling.temperature import weights_from_counts

NAME = "calibration"
CALM, BASELINE = "CALM", "baseline"
MAX_SAMPLES = 2**18
"""Sampled tokens decoded at a time."""
_LIMITS = (
    "Equality of the two means is necessary for calibration, not sufficient: too sure here and too unsure there "
    "cancel. The curves are means over start positions of one text; T below 1 is meant to leave the diagonal."
)


def accuracy(first_n: int) -> str:
    """Return the name of the measure: share of samples whose first n tokens are right."""
    return f"accuracy, {first_n} token{'s' if first_n > 1 else ''}"


def collision(first_n: int) -> str:
    """Return the name of the measure: share of pairs of samples that agree in their first n tokens."""
    return f"collision rate, {first_n} token{'s' if first_n > 1 else ''}"


def gap(first_n: int) -> str:
    """Return the name of the measure: accuracy minus collision rate."""
    return f"accuracy - collision, {first_n} token{'s' if first_n > 1 else ''}"


def prefix_ids(tokens_PSK: Tensor) -> Tensor:
    """Number the beginnings of chunks: equal numbers at k, same row and equal tokens up to k, (P, S, K).

    Cost: K sorts of P * S numbers.

    Args:
        tokens_PSK: Tokens of S chunks in each of P rows, (P, S, K).
    """
    _, token_PSK = tokens_PSK.unique(return_inverse=True)
    kinds = int(token_PSK.max()) + 1
    id_PS, ids = torch.arange(len(tokens_PSK), device=tokens_PSK.device).view(-1, 1), []
    for position in range(tokens_PSK.shape[-1]):
        _, id_PS = (id_PS * kinds + token_PSK[..., position]).unique(return_inverse=True)
        ids.append(id_PS)
    return torch.stack(ids, dim=-1)


def agreement(
    pool_2PSK: Tensor, target_PK: Tensor, inverse_temperature: int, lengths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return accuracy and collision rate of the batch temperature algorithm, each (P, lengths), expected given pools.

    Two independent pools per position stand for two uses of the algorithm. What it would choose is not drawn: its
    probabilities are summed, which has the same expectation and less variance. Unbiased for the algorithm with pools
    of S. Cost: P * S sums for each length; samples are not compared pair by pair.

    Args:
        pool_2PSK: Prefix numbers (`prefix_ids`) of two pools of S samples at each position, (2, P, S, K).
        target_PK: Those of the true tokens, (P, K).
        inverse_temperature: n = 1/T; with n = 1 pools are plain draws.
        lengths: Numbers of tokens compared, at most K each.
    """
    chunk_2PS, numbers = pool_2PSK[..., -1], int(pool_2PSK.max()) + 1
    count_2PS = torch.stack([chunk_PS.flatten().bincount(minlength=numbers)[chunk_PS] for chunk_PS in chunk_2PS])
    weight_2PS = weights_from_counts(count_2PS.flatten(0, 1), inverse_temperature).view(chunk_2PS.shape)
    right, agree = [], []
    for n in lengths:
        begin_2PS = pool_2PSK[..., n - 1]
        right.append((weight_2PS * (begin_2PS == target_PK[:, n - 1 : n])).sum((0, 2)) / 2)
        other = weight_2PS.new_zeros(numbers).index_add_(0, begin_2PS[1].flatten(), weight_2PS[1].flatten())
        agree.append((weight_2PS[0] * other[begin_2PS[0]]).sum(1))
    return torch.stack(right, dim=1), torch.stack(agree, dim=1)


@torch.no_grad()
def chunk_calibration(
    model: ContinuousLM,
    codec: Codec,
    tokens_BT: Tensor,
    starts_G: Tensor,
    inverse_temperatures: Sequence[int],
    pools: Sequence[int],
    documents_BT: Tensor | None = None,
) -> list[Row]:
    """Return accuracy and collision rate of a continuous model over temperatures and pool sizes.

    Args:
        model: The continuous language model.
        codec: Its autoencoder.
        tokens_BT: Held-out blocks, (B, T).
        starts_G: Start positions, (G,), multiples of K.
        inverse_temperatures: n of every T = 1/n.
        pools: Pool sizes S; smaller pools are part of the largest.
        documents_BT: Document of every token, (B, T); needed where the model keeps to documents.

    Returns:
        The rows. Cost: one forward pass, and 2 * max(S) draws and decoder passes per position.
    """
    K, largest = model.K, max(pools)
    target_PK = targets_at(tokens_BT, starts_G, K).flatten(0, 1)
    chunks_BLK = tokens_BT[:, : int(starts_G.max())].unflatten(1, (-1, K))
    first_BL = model.first_seen(documents_BT)
    read_BL = None if first_BL is None else first_BL[:, : chunks_BLK.shape[1]]
    hidden_BLD = model(chunks_BLK, true_latents(model, codec, chunks_BLK), read_BL)
    hidden_PD = hidden_BLD[:, (starts_G // K - 1).to(hidden_BLD.device)].flatten(0, 1)
    settings = [(n, S) for n in inverse_temperatures for S in (pools if n > 1 else [largest])]
    lengths = compared_lengths(K)
    size = max(1, MAX_SAMPLES // (2 * largest * K))
    found: list[list[tuple[Tensor, Tensor]]] = []
    for hidden, target in zip(hidden_PD.split(size), target_PK.split(size), strict=True):
        drawn_PSK = codec.decode_tokens(model.head.sample(hidden, 2 * largest).transpose(0, 1))
        ids_PSK = prefix_ids(torch.cat((drawn_PSK, target.unsqueeze(1)), dim=1))
        pool_2PSK, true_PK = torch.stack(ids_PSK[:, :-1].split(largest, dim=1)), ids_PSK[:, -1]
        found.append([agreement(pool_2PSK[:, :, :S], true_PK, n, lengths) for n, S in settings])
    group_P = torch.arange(len(tokens_BT)).repeat_interleave(len(starts_G))
    rows: list[Row] = []
    for (n, S), parts in zip(settings, zip(*found, strict=True), strict=True):
        right_Pn, agree_Pn = (torch.cat(column) for column in zip(*parts, strict=True))
        rows += _rows(f"{CALM} S={S}" if n > 1 else f"{CALM}", 1 / n, lengths, right_Pn, agree_Pn, group_P)
    return rows


def compared_lengths(K: int) -> tuple[int, ...]:
    """Return how many tokens are compared: 1, and 4 or as many as one latent has."""
    return (1, min(4, K)) if K > 1 else (1,)


@torch.no_grad()
def token_calibration(
    model: TokenLM,
    tokens_BT: Tensor,
    starts_G: Tensor,
    temperatures: Sequence[float],
    lengths: Sequence[int],
    samples: int,
    documents_BT: Tensor | None = None,
) -> list[Row]:
    """Return accuracy and collision rate of a softmax model: exact for one token, and for more but for the prefix.

    Args:
        model: The token language model.
        tokens_BT: Held-out blocks, (B, T).
        starts_G: Start positions, (G,).
        temperatures: Softmax temperatures, above 0; for several tokens the product of the tempered factors.
        lengths: Numbers of tokens compared, 1 to 4.
        samples: Sampled prefixes per position.
        documents_BT: Document of every token, (B, T); needed where the model keeps to documents.
    """
    group_P = torch.arange(len(tokens_BT)).repeat_interleave(len(starts_G))
    place = torch.tensor(lengths) - 1
    rows: list[Row] = []
    for temperature in temperatures:
        sharp = copy.deepcopy(model)  # logits are linear in the last matrix: dividing it is dividing them
        sharp.lm_head.weight.div_(temperature)
        scores = baseline_probabilities(sharp, tokens_BT, starts_G, samples, documents_BT=documents_BT)
        right_Pn, agree_Pn = scores.gold.flatten(0, 1)[:, place], scores.collision.flatten(0, 1)[:, place]
        rows += _rows(BASELINE, temperature, lengths, right_Pn, agree_Pn, group_P)
    return rows


def _rows(
    series: str, temperature: float, lengths: Sequence[int], right_Pn: Tensor, agree_Pn: Tensor, group_P: Tensor
) -> list[Row]:
    rows = []
    for column, n in enumerate(lengths):
        right_P, agree_P = right_Pn[:, column].double(), agree_Pn[:, column].double()
        for measure, of_P in ((accuracy(n), right_P), (collision(n), agree_P), (gap(n), right_P - agree_P)):
            rows.append(Row(NAME, series, measure, "T", temperature, *grouped_mean(of_P, group_P)))
    return rows


def finding(rows: Sequence[Row]) -> Finding:
    """Put the rows of one or two models together."""
    lengths = tuple(n for n in range(1, 5) if any(row.measure == gap(n) for row in rows))
    one = Finding(NAME, "Is the model calibrated?", tuple(rows), (), (), "", _LIMITS, {})
    head = ("percent", "T", *(name for n in lengths for name in (f"right {n}", f"agree {n}", "gap (SE)")))
    table = []
    for series in one.series(gap(1)):
        rows_of = one.select(gap(1), series)
        for row in (row for row in rows_of if row is rows_of[-1] or row.x in (1, 0.5)):
            cells = [series, "1" if row.x == 1 else f"1/{1 / (row.x or 1):.3g}"]
            for n in lengths:
                (difference,) = (of for of in one.select(gap(n), series) if of.x == row.x)
                cells += [cell(one.value(measure(n), series, row.x)) for measure in (accuracy, collision)]
                cells.append(f"{100 * difference.value:+.1f} ({100 * (difference.standard_error or 0):.1f})")
            table.append(tuple(cells))
    parts = []
    for row in (row for row in one.select(gap(1)) if row.x == 1):
        error = row.standard_error or float("inf")
        side = "too sure of itself" if row.value < 0 else "not sure enough"
        judged = "cannot be told from calibrated" if abs(row.value) < 2 * error else side
        parts.append(f"{row.series} {judged} ({100 * row.value:+.2f} ± {100 * error:.2f} points)")
    says = f"At T = 1, first token: {'; '.join(parts)}." if parts else "T = 1 was not measured."
    return Finding(NAME, one.title, one.rows, head, tuple(table), says, _LIMITS, {})
