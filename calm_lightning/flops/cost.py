"""What training a model in full costs: its report times its token budget, with its autoencoder's own training.

Component costs add up to the totals exactly, so a table of them needs no remainder row.
"""

from __future__ import annotations

from dataclasses import dataclass

from calm_lightning.flops.report import FlopsReport


@dataclass(frozen=True)
class ComponentCost:
    """Cost of one part of a model.

    Attributes:
        parameters: Trained parameters.
        training_flops: FLOPs over the whole token budget.
        inference_flops_per_token: FLOPs per generated text token.
    """

    parameters: int
    training_flops: float
    inference_flops_per_token: float


@dataclass(frozen=True)
class ModelCost:
    """Cost of one model over its whole token budget.

    Attributes:
        preset: Name of the model.
        convention: "exact" or "paper".
        parameters: Trained parameters, those of a frozen autoencoder left out.
        training_tokens: Text tokens the model is trained on.
        training_flops: Training FLOPs, those of its autoencoder included.
        inference_flops_per_token: FLOPs per generated text token.
        components: The same by component; "autoencoder" is the autoencoder's own training.
    """

    preset: str
    convention: str
    parameters: int
    training_tokens: float
    training_flops: float
    inference_flops_per_token: float
    components: dict[str, ComponentCost]


def model_cost(
    preset: str,
    report: FlopsReport,
    tokens: float,
    autoencoder: FlopsReport | None = None,
    autoencoder_tokens: float = 0,
) -> ModelCost:
    """Return what `tokens` text tokens of training cost, and what generation costs.

    Args:
        preset: Name of the model.
        report: Its count.
        tokens: Text tokens it is trained on.
        autoencoder: Count of the autoencoder it uses, where it uses one.
        autoencoder_tokens: Text tokens that autoencoder is trained on.
    """
    blocks = tokens / report.block_tokens
    # Dictionaries keep the order of first mention: training parts first, then what only generation needs.
    names = dict.fromkeys((*report.parameters, *report.training_per_block, *report.inference_per_token))
    components = {
        name: ComponentCost(
            report.parameters.get(name, 0),
            blocks * report.training_per_block.get(name, 0.0),
            report.inference_per_token.get(name, 0.0),
        )
        for name in names
    }
    if autoencoder is not None:
        components["autoencoder"] = ComponentCost(0, autoencoder_tokens * autoencoder.training_per_token_total, 0.0)
    return ModelCost(
        preset=preset,
        convention=report.convention,
        parameters=sum(part.parameters for part in components.values()),
        training_tokens=tokens,
        training_flops=sum(part.training_flops for part in components.values()),
        inference_flops_per_token=sum(part.inference_flops_per_token for part in components.values()),
        components=components,
    )
