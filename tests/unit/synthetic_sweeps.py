"""Sweeps with a known truth, as reports read them: curves that rise with the logarithm of training FLOPs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calm_lightning.metrics.names import ScorePoint
from sweeps.config import SweepConfig
from sweeps.front.series import Series
from sweeps.trials.reading import Failure, SweepRecord

START_FLOPS = 1e12
AUTOENCODER_FLOPS = 2e12
SLOPES = {1: 2.0, 2: 3.0, 4: 4.0, 8: 1.0}
"""BrierLM per decade of training FLOPs by K: K = 4 is best."""


def evaluation(
    step: int, flops: float, score: float, se: float = 0.2, inference: float = 1e6, below: float = 0.0
) -> ScorePoint:
    """An evaluation with a symmetric 95 % interval.

    Args:
        step: Optimiser steps.
        flops: Training FLOPs, the autoencoder's included.
        score: BrierLM, percent.
        se: Its standard error.
        inference: FLOPs per token.
        below: Training FLOPs of the autoencoder.
    """
    return ScorePoint(
        step=step,
        train_flops=flops,
        stage_train_flops=flops - below,
        inference_flops_per_token=inference,
        text_tokens=1e4 * step,
        seconds=float(step),
        brier_lm=score,
        brier_lm_se=se,
        brier_lm_low=max(0.0, score - 1.96 * se),
        brier_lm_high=score + 1.96 * se,
        brier=(4 * score, 2 * score, score, score / 2),
        brier_se=(se, se, se, se),
    )


def run(
    scores: Sequence[float],
    values: Mapping[str, Any],
    *,
    flops: Sequence[float] | None = None,
    seed: int = 0,
    trial: int = 0,
    state: str = "complete",
    settings: Mapping[str, Any] | None = None,
    se: float = 0.2,
    inference: float = 1e6,
    stage: str = "calm",
    finished: float | None = None,
) -> Series:
    """A run with an untrained evaluation and one after every ten steps."""
    below = AUTOENCODER_FLOPS if stage == "calm" else 0.0
    costs = flops if flops is not None else [START_FLOPS * 10 ** (1 + 0.5 * i) for i in range(len(scores))]
    points = [evaluation(0, below, 0.0, se, inference, below)]
    points += [
        evaluation(10 * number, cost, score, se, inference, below)
        for number, (cost, score) in enumerate(zip(costs, scores, strict=True), start=1)
    ]
    named = ", ".join(f"{key.split('.')[-1]}={value}" for key, value in values.items())
    slug = "-".join(f"{key.split('.')[-1]}{value}" for key, value in values.items()) or stage
    return Series(
        label=f"CALM {named}" if stage == "calm" else "baseline",
        stage=stage,
        values=dict(values),
        parameters=3_400_000,
        points=tuple(points),
        run_dir=f"runs/{slug}-{seed}",
        autoencoder_dir=f"runs/autoencoder-{slug}" if stage == "calm" else "",
        mlflow_run_id=None,
        text="Two\nlines",
        slug=slug,
        seed=seed,
        trial=trial,
        state=state,
        settings=dict(settings or {}),
        reason="it lies under the front" if state == "pruned" else "",
        finished=finished,
    )


def baseline(scores: Sequence[float] = (3.0, 6.0, 9.0), **more: Any) -> Series:
    """The token baseline."""
    return run(scores, {}, stage="baseline", inference=more.pop("inference", 3e6), **more)


def grid(
    Ks: Sequence[int] = (1, 2, 4, 8),
    Ns: Sequence[int] = (2, 8, 12),
    ls: Sequence[int] = (128,),
    seeds: Sequence[int] = (0,),
    noise: float = 0.1,
    evaluations: int = 5,
    with_baseline: bool = True,
) -> list[Series]:
    """A grid over K, N and l whose truth is known: SLOPES by K, a small gain by N, a peak at l = 128."""
    generator = np.random.default_rng(7)
    found: list[Series] = []
    if with_baseline:
        found += [baseline([1.0, 3.0, 4.5, 6.0, 7.5][:evaluations], seed=seed, trial=seed) for seed in seeds]
    for K in Ks:
        for l in ls:
            for N in Ns:
                for seed in seeds:
                    flops = [AUTOENCODER_FLOPS + START_FLOPS * (1 + N / 40) * 10 ** (0.4 * i) for i in range(1, 6)]
                    drift = float(generator.normal(0, noise))
                    scores = [
                        max(0.0, SLOPES[K] * truth(cost, N, l) + drift + float(generator.normal(0, 0.3 * noise)))
                        for cost in flops[:evaluations]
                    ]
                    pruned = K == 8 and min(Ns) == N and len(Ns) > 1
                    kept = 3 if pruned else len(scores)
                    values = {"model.K": K, "model.N": N} | ({"model.l": l} if len(ls) > 1 else {})
                    found.append(
                        run(
                            scores[:kept],
                            values,
                            flops=flops[:kept],
                            seed=seed,
                            trial=len(found),
                            state="pruned" if pruned else "complete",
                            settings={"model.l": l, "model.K": K, "model.N": N, "autoencoder.drop_token": 0.15},
                            se=0.1,
                            inference=5e6 / K + 2e5,
                        )
                    )
    return found


def truth(cost: float, N: int, l: int) -> float:
    """Decades above START_FLOPS, times what N and l bring."""
    return math.log10(cost / START_FLOPS) * (1 + 0.05 * math.log2(N)) * (1.0 if l == 128 else 0.9)


def record(
    series: Sequence[Series],
    directory: Path = Path("runs/sweeps/synthetic"),
    failures: Sequence[Failure] = (),
    unfinished: int = 0,
    **config: Any,
) -> SweepRecord:
    """A sweep as `read_sweep` returns it."""
    sweep = SweepConfig(name="synthetic", title="A synthetic sweep (no model was trained)", **config)
    study = directory.name
    return SweepRecord(directory, study, sweep, "", tuple(series), tuple(failures), unfinished)
