"""The one vocabulary of logged names, with their units. Every logger, table and figure reads it from here."""

from __future__ import annotations

from dataclasses import dataclass

TRAIN_LOSS = "train/loss"
TRAIN_LR = "train/learning_rate"
TRAIN_GRAD_NORM = "train/gradient_norm"
TRAIN_TOKENS_PER_SECOND = "train/tokens_per_second"

VAL_LOSS = "val/loss"
VAL_CROSS_ENTROPY = "val/cross_entropy"
VAL_KL = "val/kl"
VAL_HEAD_LOSS = {head: f"val/{head}_loss" for head in ("energy", "flow", "diffusion")}
VAL_ACCURACY_MEAN = "val/token_accuracy_mean"
VAL_ACCURACY_SAMPLED = "val/token_accuracy_sampled"

BRIER_LM = "val/brier_lm"
BRIER_LM_SE = "val/brier_lm_se"
BRIER_LM_LOW = "val/brier_lm_low"
BRIER_LM_HIGH = "val/brier_lm_high"
BRIER_LM_ZEROED = "val/brier_lm_zeroed"
BRIER_N = tuple(f"val/brier_{n}" for n in range(1, 5))
BRIER_N_SE = tuple(f"val/brier_{n}_se" for n in range(1, 5))
SCORED_POSITIONS = "val/scored_positions"
SCORED_DOCUMENTS = "val/scored_documents"
RESAMPLED_UNITS = "val/resampled_units"

TRAIN_FLOPS = "cost/train_flops"
TRAIN_FLOPS_TOTAL = "cost/train_flops_with_autoencoder"
LOG_TRAIN_FLOPS_TOTAL = "cost/log10_train_flops_with_autoencoder"
TEXT_TOKENS = "cost/text_tokens"
SECONDS = "cost/seconds"
INFERENCE_FLOPS_PER_TOKEN = "cost/inference_flops_per_token"

FRONT_HYPERVOLUME = "front/hypervolume"
FRONT_SIZE = "front/size"
FRONT_BEST = "front/best_brier_lm"
FRONT_SPENT = "front/spent_train_flops"
FRONT_REFERENCE = "front/reference_train_flops"

UNITS = {
    TRAIN_LOSS: "loss of the stage, see its class",
    TRAIN_LR: "learning rate",
    TRAIN_GRAD_NORM: "L2 norm before clipping",
    TRAIN_TOKENS_PER_SECOND: "text tokens per second",
    VAL_LOSS: "loss of the stage, see its class",
    VAL_CROSS_ENTROPY: "nats per token",
    VAL_KL: "nats per chunk, before clipping",
    VAL_HEAD_LOSS["energy"]: "energy distance per chunk position",
    VAL_HEAD_LOSS["flow"]: "squared error of the velocity per latent dimension",
    VAL_HEAD_LOSS["diffusion"]: "squared error of the noise plus bits of the variance bound, per latent dimension",
    VAL_ACCURACY_MEAN: "fraction of tokens restored from z = mu",
    VAL_ACCURACY_SAMPLED: "fraction of tokens restored from z drawn from the posterior",
    BRIER_LM: "percent, 100 * geometric mean of Brier-1..4",
    BRIER_LM_SE: "percent, standard error over evaluation documents (bootstrap)",
    BRIER_LM_LOW: "percent, lower end of the 95 % interval",
    BRIER_LM_HIGH: "percent, upper end of the 95 % interval",
    BRIER_LM_ZEROED: "1 where a Brier-n mean is not positive and BrierLM is 0 by definition, else 0",
    SCORED_POSITIONS: "start positions scored",
    SCORED_DOCUMENTS: "documents with scored positions",
    RESAMPLED_UNITS: "units resampled for errors: documents or, where they are fewer than 20, pieces within a block",
    TRAIN_FLOPS: "FLOPs spent training this stage",
    TRAIN_FLOPS_TOTAL: "FLOPs spent training this stage and the autoencoder it uses",
    LOG_TRAIN_FLOPS_TOTAL: "decimal logarithm of these FLOPs, for charts without logarithmic axes; none at 0",
    TEXT_TOKENS: "text tokens trained on",
    SECONDS: "seconds of training, evaluation left out",
    INFERENCE_FLOPS_PER_TOKEN: "FLOPs per generated text token",
    FRONT_HYPERVOLUME: "of a sweep's front, decades of training FLOPs times percent, below the sweep's reference cost",
    FRONT_SIZE: "evaluations on a sweep's front",
    FRONT_BEST: "percent, highest BrierLM on a sweep's front",
    FRONT_REFERENCE: "training FLOPs that with BrierLM 0 are the reference point of a sweep's hypervolumes",
    FRONT_SPENT: "training FLOPs that a sweep's ended trials took, a shared autoencoder counted once",
    **{name: "percent" for name in (*BRIER_N, *BRIER_N_SE)},
}


@dataclass(frozen=True)
class ScorePoint:
    """One evaluation of one run: a point of the FLOPs-versus-BrierLM plane.

    Attributes:
        step: Optimiser steps trained.
        train_flops: Training FLOPs so far, those of the autoencoder included.
        stage_train_flops: Training FLOPs of the language model alone.
        inference_flops_per_token: FLOPs to generate one text token.
        text_tokens: Text tokens trained on.
        seconds: Seconds of training.
        brier_lm: BrierLM, percent.
        brier_lm_se: Its standard error, percent.
        brier_lm_low: Lower end of its 95 % interval, percent.
        brier_lm_high: Upper end of its 95 % interval, percent.
        brier: Brier-1..4, percent.
        brier_se: Their standard errors, percent.
    """

    step: int
    train_flops: float
    stage_train_flops: float
    inference_flops_per_token: float
    text_tokens: float
    seconds: float
    brier_lm: float
    brier_lm_se: float
    brier_lm_low: float
    brier_lm_high: float
    brier: tuple[float, float, float, float]
    brier_se: tuple[float, float, float, float]

    @classmethod
    def from_metrics(cls, step: int, metrics: dict[str, float]) -> ScorePoint | None:
        """Return the point that one step's logged metrics describe, or None where BrierLM was not logged."""
        if BRIER_LM not in metrics or TRAIN_FLOPS_TOTAL not in metrics:
            return None
        one, two, three, four = (metrics[name] for name in BRIER_N)
        se_one, se_two, se_three, se_four = (metrics[name] for name in BRIER_N_SE)
        return cls(
            step=step,
            train_flops=metrics[TRAIN_FLOPS_TOTAL],
            stage_train_flops=metrics[TRAIN_FLOPS],
            inference_flops_per_token=metrics[INFERENCE_FLOPS_PER_TOKEN],
            text_tokens=metrics[TEXT_TOKENS],
            seconds=metrics[SECONDS],
            brier_lm=metrics[BRIER_LM],
            brier_lm_se=metrics[BRIER_LM_SE],
            brier_lm_low=metrics[BRIER_LM_LOW],
            brier_lm_high=metrics[BRIER_LM_HIGH],
            brier=(one, two, three, four),
            brier_se=(se_one, se_two, se_three, se_four),
        )
