"""The token baseline: the same transformer over tokens, with an untied softmax head.

Shape suffixes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from calm_lightning.backbone.transformer import Transformer, init_weights
from calm_lightning.language_model.config import LanguageModelConfig


class TokenLM(nn.Module):
    """A Llama-style next-token language model on the backbone that CALM uses.

    Args:
        config: Shape of the backbone.
        vocabulary: Vocabulary size V.
    """

    def __init__(self, config: LanguageModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.embedding = nn.Embedding(vocabulary, config.d)
        self.backbone = Transformer(config.backbone())
        self.lm_head = nn.Linear(config.d, vocabulary, bias=False)
        init_weights(self)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return logits (B, T, V); position i has seen tokens 0..i and predicts token i + 1."""
        return self.lm_head(self.backbone(self.embedding(tokens_BT)))
