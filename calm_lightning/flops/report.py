"""The result of a count: parameters and FLOPs by component, with their sums.

A plain value rather than a running counter: what a run has spent is this value times the blocks it has seen.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FlopsReport:
    """Cost of one model on blocks of T text tokens. One multiply-add is 2 FLOPs.

    Attributes:
        stage: "autoencoder", "calm" or "baseline".
        convention: "exact" or "paper", see `calm_lightning.flops.count.CONVENTIONS`.
        block_tokens: Text tokens per block T.
        parameters: Trained parameters by component; those of a frozen autoencoder are not among them.
        forward_per_block: FLOPs of one training step's forward pass over one block.
        training_per_block: FLOPs of forward and backward pass over one block.
        inference_per_token: FLOPs per generated text token, with a key-value cache, at the mean context of a
            block (autoencoder: per token encoded and decoded).
    """

    stage: str
    convention: str
    block_tokens: int
    parameters: dict[str, int]
    forward_per_block: dict[str, float]
    training_per_block: dict[str, float]
    inference_per_token: dict[str, float]

    @property
    def parameters_total(self) -> int:
        """Number of trained parameters."""
        return sum(self.parameters.values())

    @property
    def forward_per_block_total(self) -> float:
        """FLOPs of the forward pass over one block."""
        return sum(self.forward_per_block.values())

    @property
    def training_per_block_total(self) -> float:
        """FLOPs of one block's share of a training step."""
        return sum(self.training_per_block.values())

    @property
    def training_per_token_total(self) -> float:
        """Training FLOPs per text token streamed."""
        return self.training_per_block_total / self.block_tokens

    @property
    def inference_per_token_total(self) -> float:
        """FLOPs per generated text token."""
        return sum(self.inference_per_token.values())
