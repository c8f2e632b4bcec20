"""What a configuration must satisfy, key by key and across keys: every contradiction at once, in words.

Each problem names the key to change. Knows no torch, so that `calm config` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from calm_lightning.config.schema import RunConfig
from calm_lightning.data.config import ERROR, SKIP
from calm_lightning.errors import ConfigError
from calm_lightning.language_model.config import INPUTS, NOISES, LanguageModelConfig
from calm_lightning.language_model.heads.registry import HEADS, MOST_STEPS
from calm_lightning.stages.trainer_keys import trainer_problems

STAGES = ("autoencoder", "calm", "baseline")


def validate(config: RunConfig) -> None:
    """Check values and their combinations.

    Raises:
        ConfigError: One sentence that lists every problem and the key to change.
    """
    problems = [*_shape_problems(config), *_training_problems(config), *_evaluation_problems(config)]
    if problems:
        raise ConfigError("; ".join(problems))


def _positive(section: str, values: object, names: Sequence[str], least: int = 1) -> list[str]:
    """Return a problem for every named field that is below `least`."""
    found = ((name, getattr(values, name)) for name in names)
    return [
        f"{section}{name}={value} must be at least {least}"
        for name, value in found
        if value is not None and value < least
    ]


def _shape_problems(config: RunConfig) -> list[str]:
    model, auto = config.model, config.autoencoder
    problems = []
    if config.stage not in STAGES:
        problems.append(f"stage={config.stage} must be one of {', '.join(STAGES)}")
    problems += _positive(
        "model.",
        model,
        ("K", "l", "vocabulary", "d", "intermediate", "layers", "heads", "head_blocks", "noise_size", "M"),
    )
    problems += _positive("autoencoder.", auto, ("d", "intermediate"))
    if model.heads >= 1 and (model.d % model.heads or (model.d // model.heads) % 2):
        problems.append(f"model.heads={model.heads} must divide model.d={model.d} into heads of even width")
    problems += _head_problems(model)
    for name in ("encoder_layers", "decoder_layers"):
        value = getattr(auto, name)
        if value < 2 or value % 2:
            problems.append(f"autoencoder.{name}={value} must be even and at least 2")
    for name in ("drop_token", "drop_latent"):
        if not 0 <= getattr(auto, name) < 1:
            problems.append(f"autoencoder.{name}={getattr(auto, name)} must lie in [0, 1)")
    problems += _positive("autoencoder.", auto, ("beta", "kl_clip", "mask_id"), least=0)
    return problems + _number_problems("model", model) + _number_problems("autoencoder", auto)


def _one_of(key: str, value: str, known: Iterable[str]) -> list[str]:
    """Return a problem if `value` is none of the known ones."""
    return [] if value in known else [f"{key}={value} must be one of {', '.join(known)}"]


def _head_problems(model: LanguageModelConfig) -> list[str]:
    problems = _one_of("model.input", model.input, INPUTS) + _one_of("model.noise", model.noise, NOISES)
    if not 0 < model.alpha <= 2:
        problems.append(
            f"model.alpha={model.alpha} must lie in (0, 2]; the energy score is strictly proper below 2 only"
        )
    if model.head not in HEADS:
        return [*problems, f"model.head={model.head} must be one of {', '.join(HEADS)}"]
    head = HEADS[model.head]
    problems += _positive("model.", model, ("N",), least=1 if head.solvers else 2)
    if not head.solvers:
        if model.sampling_steps is not None or model.solver is not None:
            problems.append(
                f"model.head={model.head} draws in one step: leave model.sampling_steps and model.solver unset"
            )
        return problems
    if model.solver is not None:
        problems += _one_of("model.solver", model.solver, head.solvers)
    if model.sampling_steps is not None and not head.fewest_steps <= model.sampling_steps <= MOST_STEPS:
        problems.append(
            f"model.sampling_steps={model.sampling_steps} must lie between {head.fewest_steps} and {MOST_STEPS}"
        )
    return problems


def _training_problems(config: RunConfig) -> list[str]:
    data, optim = config.data, config.optim
    problems = _positive(
        "data.", data, ("block_tokens", "batch_tokens", "eval_batch_tokens", "eval_max_blocks", "shuffle_shards")
    )
    problems += _positive("data.", data, ("workers", "retries"), least=0)
    problems += _positive("data.", data, ("cache_gb", "timeout"), least=0) + _number_problems("data", data)
    problems += _one_of("data.on_bad_shard", data.on_bad_shard, (ERROR, SKIP))
    K = config.model.K
    if config.stage != "baseline" and K >= 1 and data.block_tokens % K:
        below = max(K, data.block_tokens // K * K)
        problems.append(
            f"data.block_tokens={data.block_tokens} is not a multiple of model.K={K} (use {below} or {below + K})"
        )
    for name in ("batch_tokens", "eval_batch_tokens"):
        if data.block_tokens >= 1 and getattr(data, name) % data.block_tokens:
            problems.append(
                f"data.{name}={getattr(data, name)} is not a multiple of data.block_tokens={data.block_tokens}"
            )
    if optim.schedule not in ("constant", "linear", "cosine"):
        problems.append(f"optim.schedule={optim.schedule} must be constant, linear or cosine")
    for name in ("lr", "eps"):
        if not getattr(optim, name) > 0:
            problems.append(f"optim.{name}={getattr(optim, name)} must be positive")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        problems.append(f"optim.betas={optim.betas} must be two numbers in [0, 1)")
    if not 0 <= optim.ema_decay < 1:
        problems.append(f"optim.ema_decay={optim.ema_decay} must lie in [0, 1)")
    problems += _positive("optim.", optim, ("warmup_steps", "weight_decay", "final_lr_ratio"), least=0)
    problems += _positive("", config, ("checkpoint_steps",))
    return problems + _number_problems("optim", optim) + trainer_problems(config.trainer)


def _number_problems(section: str, values: object) -> list[str]:
    """Return a problem for every field that is nan or infinite."""
    numbers = ((name, value) for name, value in vars(values).items() if isinstance(value, float))
    return [f"{section}.{name}={value} must be a finite number" for name, value in numbers if not math.isfinite(value)]


def _evaluation_problems(config: RunConfig) -> list[str]:
    evaluation, K = config.evaluation, config.model.K
    problems = _positive("evaluation.", evaluation, ("samples",), least=2)
    problems += _positive("evaluation.", evaluation, ("start_stride",))
    problems += _positive("evaluation.", evaluation, ("every_steps", "text_tokens"), least=0)
    if config.stage == "calm" and K >= 1 and evaluation.start_stride % K:
        problems.append(
            f"evaluation.start_stride={evaluation.start_stride} is not a multiple of model.K={K}: "
            f"start positions must lie on chunk borders (24 serves K = 1, 2, 3, 4, 6, 8)"
        )
    if config.stage != "autoencoder" and config.data.block_tokens < evaluation.start_stride + 4:
        problems.append(
            f"data.block_tokens={config.data.block_tokens} must be at least evaluation.start_stride + 4 = "
            f"{evaluation.start_stride + 4}, or no position is scored"
        )
    inverse = 1 / evaluation.text_temperature if evaluation.text_temperature > 0 else 0.0
    if inverse < 1 or abs(inverse - round(inverse)) > 1e-6:
        problems.append(f"evaluation.text_temperature={evaluation.text_temperature} must be 1 or 1/n, n a whole number")
    return problems
