"""How a score was made: two scores with different protocols are not comparable, so every score carries its own.

The batch size and the device are the exception: they decide which random numbers are drawn where, so they move a score
no more than another seed does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

ALIGNED, RELEASED = "aligned", "released"
PROTOCOLS = (ALIGNED, RELEASED)
RELEASED_SAMPLES = 2
RELEASED_BLOCK_TOKENS = {"calm": 8192, "autoencoder": 8192, "baseline": 2048}
"""The authors' evaluation: block length in tokens by stage, and samples per start position."""


@dataclass(frozen=True)
class Protocol:
    """What a score depends on besides the model's weights, as far as a user chooses it.

    The same protocol gives the same draws on the same machine with the same versions of the software. Elsewhere, how
    much memory a slice of draws may take and how the device draws can differ: then it gives the same score up to the
    error of its samples, as another seed would.

    Attributes:
        name: "aligned": compared models are scored at the same start positions; "released": as the authors' code does,
            every chunk but the first of a block, the baseline at every token.
        block_tokens: Tokens per block; the first position of a block has no context. The largest influence by far.
        start_stride: Tokens between start positions; the first one is as far from the block's beginning, the last one
            has four tokens behind it. None where every token counts (autoencoders).
        samples: Samples S per start position.
        corpus: SHA-256 of the text: of the corpus' manifest, or of the texts' bytes.
        split: Split of the corpus; "" for other texts.
        blocks: Blocks read.
        max_blocks: Their limit (evenly spaced blocks), or None.
        documents: Documents with scored positions.
        tokens: Tokens in the blocks read, separators included.
        left_out_tokens: Tokens of the text in no block read.
        tokenizer: Fingerprint of the tokenizer.
        precision: "32-true" or "bf16-mixed".
        seed: Seed of the draws.
        commit: Commit of the code, "-dirty" appended where it was edited; "" where it is not known.
        model: Identities of the model and of its autoencoder, as far as they are known.
        temperature: 1: the model as it is.
        sampler: How the model's head draws where that is a choice, for example "flow, 4 midpoint steps"; else "".
        batch_tokens: Tokens per batch; 0 where it is not known. Every batch begins its draws anew.
        device: Kind of device, such as "cpu" or "cuda"; "" where it is not known.
    """

    name: str
    block_tokens: int
    start_stride: int | None
    samples: int
    corpus: str
    split: str
    blocks: int
    max_blocks: int | None
    documents: int
    tokens: int
    left_out_tokens: int
    tokenizer: str
    precision: str
    seed: int
    commit: str
    model: Mapping[str, str] = field(default_factory=dict)
    temperature: float = 1.0
    sampler: str = ""
    batch_tokens: int = 0
    device: str = ""

    @property
    def starts(self) -> str:
        """Which positions are scored, in words."""
        if self.start_stride is None:
            return "every token"
        every = "every token" if self.start_stride == 1 else f"multiples of {self.start_stride} tokens"
        return f"{every} from {self.start_stride} on, with 4 tokens left in the block"

    def to_dict(self) -> dict[str, object]:
        """Return the protocol as plain values, `starts` included."""
        return {**asdict(self), "model": dict(self.model), "starts": self.starts}

    def describe(self) -> str:
        """Return the protocol as one line for people."""
        place = f"split {self.split} of corpus" if self.split else "text"
        parts = [
            f"protocol {self.name}",
            f"{self.blocks:,} blocks of {self.block_tokens:,} tokens ({self.left_out_tokens:,} tokens left out)",
            f"starts: {self.starts}",
            f"S = {self.samples}",
            f"T = {self.temperature:g}",
            *([self.sampler] if self.sampler else []),
            " on ".join(part for part in (self.precision, self.device) if part),
            *([f"batches of {self.batch_tokens:,} tokens"] if self.batch_tokens else []),
            f"seed {self.seed}",
            f"{place} {self.corpus[:12]}",
            f"tokenizer {self.tokenizer[:12]}",
            *(f"{name} {value[:12]}" for name, value in self.model.items()),
        ]
        edited = " (edited)" if self.commit.endswith("-dirty") else ""
        return "; ".join([*parts, f"commit {self.commit[:12]}{edited}"] if self.commit else parts)
