"""The token baseline: the same transformer over tokens, with an untied softmax head.

Shape suffixes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from calm_lightning.backbone.transformer import Transformer, init_weights
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.documents import first_seen


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

    def first_seen(self, documents_BT: Tensor | None) -> Tensor | None:
        """Return the first token that each token sees, (B, T), of the documents of all tokens; see `first_seen`."""
        return first_seen(self.config, documents_BT)

    def forward(self, tokens_BT: Tensor, first_BT: Tensor | None = None) -> Tensor:
        """Predict the next token everywhere.

        Args:
            tokens_BT: Tokens, (B, T).
            first_BT: First token that each token sees, (B, T), of `first_seen`; None means the first of all.

        Returns:
            Logits, (B, T, V); position i has seen tokens up to i and predicts token i + 1.
        """
        return self.lm_head(self.backbone(self.embedding(tokens_BT), first_BT))
