"""The batch temperature algorithm without drawing and decoding the whole pool.

`choose_lazily` has the distribution of drawing S samples, decoding all of them and choosing a chunk with weight C(c, n)
(`batch_temperature`), for a fraction of its cost, which is S decoder outputs times the vocabulary. Three facts:

1. C(c, n) counts the n-subsets of the pool whose members are all equal. A uniformly random n-subset, accepted if its
   members are equal and drawn anew otherwise, therefore is that choice, and touches n samples of the pool.
2. Members of such a subset agree in every token: subsets may be proposed among samples that agree in the first tokens,
   and a sample whose first tokens occur once in its pool counts for nothing.
3. The samples of a pool are independent: one that nobody looks at need not be drawn.

So: a few proposals from the undrawn pool; for the rows in which none was accepted, all first tokens and a few better
proposals; then the second tokens of those samples that still can count, and so on. Each round proposes from a set that
contains every subset of equal members, so accepting early does not change the distribution. Where no proposal was ever
accepted, the counts are known at the end.

Shape suffixes: R rows (pools), S samples of a pool, P = R * S, K tokens per chunk, D width, E decoder width, Z latent
dimension, m proposals, n members of a proposal, X any selection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.language_model.heads.base import GenerativeHead
from calm_lightning.sampling.codec import Codec
from calm_lightning.sampling.temperature import Draws, weights_from_counts

FIRST_PROPOSALS = 8
"""Random n-subsets per row from the undrawn pool: enough where one chunk stands out, little where none does."""
PROPOSALS = 32
"""Random n-subsets per row and later round. What they decode in vain the next round has need of anyway."""


class LazyPool:
    """S samples of each of R rows, drawn and decoded only where asked.

    A `ChunkAutoencoder` decodes single positions; any other codec decodes a sample whole when it is first looked at.

    Args:
        head: Draws latents.
        codec: Decodes them.
        hidden_RD: Hidden state of each row, (R, D).
        samples: Samples S of each row.
        K: Tokens per chunk.
        l: Latent dimension.
    """

    def __init__(self, head: GenerativeHead, codec: Codec, hidden_RD: Tensor, samples: int, K: int, l: int) -> None:
        self.head, self.codec, self.hidden_RD, self.samples, self.K = head, codec, hidden_RD, samples, K
        self.rows = len(hidden_RD)
        P, device = self.rows * samples, hidden_RD.device
        self.latent_PZ = torch.empty(P, l, device=device)
        self.token_PK = torch.full((P, K), -1, dtype=torch.long, device=device)
        self._drawn_P = torch.zeros(P, dtype=torch.bool, device=device)
        self._states_PE: Tensor | None = None

    def draw_rows(self, rows_X: Tensor) -> None:
        """Draw what is not drawn yet of whole rows (X,), which costs less per sample than single ones."""
        latents_PZ = self.head.sample(self.hidden_RD[rows_X], self.samples).transpose(0, 1).flatten(0, 1)
        index_P = self.of_rows(rows_X)
        new_P = ~self._drawn_P[index_P]
        self._keep(index_P[new_P], latents_PZ[new_P])

    def of_rows(self, rows_X: Tensor) -> Tensor:
        """Return the numbers of all samples of rows (X,): (X * S,)."""
        return (rows_X.unsqueeze(1) * self.samples + torch.arange(self.samples, device=rows_X.device)).flatten()

    def decode(self, index_X: Tensor, position: int) -> Tensor:
        """Return the tokens (X,) of samples (X,) at a position; a number may occur more than once."""
        wanted_P = torch.zeros_like(self._drawn_P)
        wanted_P[index_X] = True
        new_X = (wanted_P & ~self._drawn_P).nonzero().squeeze(1)
        if len(new_X):
            self._keep(new_X, self.head.sample(self.hidden_RD[new_X // self.samples], 1)[0])
        missing_X = (wanted_P & (self.token_PK[:, position] < 0)).nonzero().squeeze(1)
        if len(missing_X):
            assert isinstance(self.codec, ChunkAutoencoder) and self._states_PE is not None
            self.token_PK[missing_X, position] = self.codec.decode_position(self._states_PE[missing_X], position)
        return self.token_PK[index_X, position]

    def take(self, index_R: Tensor) -> Draws:
        """Return samples (R,) as a whole: tokens (R, K) and latents (R, Z)."""
        tokens = [self.decode(index_R, position) for position in range(self.K)]
        return Draws(torch.stack(tokens, dim=-1), self.latent_PZ[index_R])

    def _keep(self, index_X: Tensor, latent_XZ: Tensor) -> None:
        self._drawn_P[index_X] = True
        self.latent_PZ[index_X] = latent_XZ.to(self.latent_PZ.dtype)
        if not isinstance(self.codec, ChunkAutoencoder):
            self.token_PK[index_X] = self.codec.decode_tokens(latent_XZ)
            return
        states_XE = self.codec.decoder.chunk_states(latent_XZ)
        if self._states_PE is None:
            self._states_PE = states_XE.new_empty(len(self.latent_PZ), states_XE.shape[-1])
        self._states_PE[index_X] = states_XE


def choose_lazily(pool: LazyPool, inverse_temperature: int) -> Draws:
    """Choose one chunk per row of a pool with weight C(c, n), as `batch_temperature` does.

    Args:
        pool: The rows' samples.
        inverse_temperature: n = 1/T, at least 1.

    Returns:
        The chunks (R, K) and latents (R, Z).
    """
    n, S, device = inverse_temperature, pool.samples, pool.token_PK.device
    chosen_R = torch.full((pool.rows,), -1, dtype=torch.long, device=device)
    open_X = torch.arange(pool.rows, device=device)
    if n == 1:
        return pool.take(open_X * S)  # all samples are alike
    group_P = open_X.repeat_interleave(S)  # samples that agree so far
    count_P = torch.full_like(group_P, S)  # how many they are
    for position in range(pool.K):
        num = PROPOSALS if position else FIRST_PROPOSALS
        chosen_R[open_X] = _propose(pool, open_X, group_P.view(-1, S), count_P.view(-1, S), n, num)
        open_X = (chosen_R < 0).nonzero().squeeze(1)
        if len(open_X) == 0:
            return pool.take(chosen_R)
        if position == 0:
            pool.draw_rows(open_X)
        index_P = pool.of_rows(open_X)
        alive_Y = index_P[count_P[index_P] > 1]
        pair_Y = (group_P[alive_Y] << 32) + pool.decode(alive_Y, position)
        _, group_P[alive_Y], size_G = pair_Y.unique(return_inverse=True, return_counts=True)
        count_P[alive_Y] = size_G[group_P[alive_Y]]
        group_P[index_P[count_P[index_P] == 1]] = -1
    weights_XS = weights_from_counts(count_P.view(-1, S)[open_X], n)
    chosen_R[open_X] = open_X * S + torch.multinomial(weights_XS, 1).squeeze(1)
    return pool.take(chosen_R)


def _propose(pool: LazyPool, rows_X: Tensor, group_RS: Tensor, count_RS: Tensor, n: int, num: int) -> Tensor:
    """Propose random n-subsets within groups of samples and return the first whose members are equal.

    Every n-subset that lies within a group of its row is equally likely.

    Args:
        pool: The samples.
        rows_X: The rows, (X,).
        group_RS: Equal numbers mark a group, (R, S).
        count_RS: Size of each sample's group, (R, S).
        n: Members of a subset.
        num: Subsets per row.

    Returns:
        A sample of the accepted subset, (X,); -1 where none was accepted.
    """
    chosen_X = torch.full_like(rows_X, -1)
    able_X = (count_RS[rows_X].amax(1) >= n).nonzero().squeeze(1)
    if len(able_X) == 0:
        return chosen_X
    row_Y = rows_X[able_X]
    anchor_Ym = torch.multinomial(weights_from_counts(count_RS[row_Y], n), num, replacement=True)
    group_YS = group_RS[row_Y]
    among_YmS = group_YS.gather(1, anchor_Ym).unsqueeze(-1) == group_YS.unsqueeze(1)
    order_YmS = torch.rand(among_YmS.shape, device=among_YmS.device).masked_fill(~among_YmS, -1)
    member_Ymn = row_Y.view(-1, 1, 1) * pool.samples + order_YmS.topk(n, dim=-1).indices
    equal_Ym = torch.ones_like(anchor_Ym, dtype=torch.bool)
    for position in range(pool.K):
        tokens = pool.decode(member_Ymn[equal_Ym].flatten(), position).view(-1, n)
        equal_Ym[equal_Ym.clone()] = (tokens == tokens[:, :1]).all(-1)
    first_Y1 = equal_Ym.long().argmax(1, keepdim=True)
    chosen_X[able_X] = member_Ymn[..., 0].gather(1, first_Y1).squeeze(1).where(equal_Ym.any(1), -1)
    return chosen_X
