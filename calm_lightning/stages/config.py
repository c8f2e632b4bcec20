"""Configuration of optimisation and evaluation, shared by all stages."""

from dataclasses import dataclass, field


@dataclass
class OptimConfig:
    """AdamW and its learning-rate schedule (paper: constant after warm-up).

    Attributes:
        lr: Peak learning rate.
        betas: AdamW's two decay rates.
        eps: AdamW's epsilon.
        weight_decay: Decoupled decay, applied to matrices only (not to norms, biases).
        warmup_steps: Optimiser steps of linear warm-up.
        schedule: After the warm-up: "constant", "linear" or "cosine" decay to final_lr_ratio * lr.
        final_lr_ratio: Learning rate at the last step, as a fraction of `lr`.
        ema_decay: Decay of an exponential moving average of the weights, which is then what is evaluated; 0 is off.
    """

    lr: float = 3e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup_steps: int = 1000
    schedule: str = "constant"
    final_lr_ratio: float = 0.0
    ema_decay: float = 0.0


@dataclass
class EvaluationConfig:
    """How often and how finely a run is scored.

    Attributes:
        every_steps: Optimiser steps between evaluations; 0 evaluates only before and after training.
        samples: Samples S per start position for BrierLM, at least 2.
        start_stride: Tokens between scored start positions, a multiple of K. Models compared with one another
            must share it; 24 serves K = 1, 2, 3, 4, 6, 8, 12 and 24.
        text_tokens: Length of the generated text sample, tokens; 0 writes none.
        text_temperature: Temperature of that sample, 1 or 1/n.
    """

    every_steps: int = 500
    samples: int = 8
    start_stride: int = 24
    text_tokens: int = 96
    text_temperature: float = 0.5
