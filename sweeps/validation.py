"""What a sweep must satisfy beside its points: every contradiction at once, in words, before anything is trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from calm_lightning.config.fingerprint import RECIPE_VERSION
from calm_lightning.errors import ConfigError
from sweeps.budget.rule import check_budget
from sweeps.config import BRIER_LM, OBJECTIVES, SweepConfig
from sweeps.launchers.config import launch_problems
from sweeps.pruning.config import SINGLE, validate_pruning
from sweeps.space.parameters import CHOICE, parameters
from sweeps.trials.samplers import ADAPTIVE, GRID, SAMPLERS, make_sampler

_NOT_IN_NAME = (
    *("title", "caveats", "launch", "storage", "tracking", "paper_overlay", "retries", "stop_after_failures"),
    *("seeds", "corpus"),
)
"""What does not change the numbers of a trial: more seeds extend a study, and the corpus is in by its hash."""


def validate_sweep(sweep: SweepConfig) -> None:
    """Check a sweep.

    Raises:
        ConfigError: One sentence that lists every problem and the key to change.
    """
    problems = _objective_problems(sweep) + _sampler_problems(sweep) + _trial_problems(sweep)
    try:
        check_budget(sweep.budget)
    except ConfigError as error:
        problems.append(str(error))
    try:
        validate_pruning(sweep.pruning)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))


def _objective_problems(sweep: SweepConfig) -> list[str]:
    objectives, problems = sweep.objectives, []
    unknown = [one for one in objectives if one not in OBJECTIVES]
    if unknown or len(set(objectives)) < len(objectives):
        problems.append(f"objectives={objectives} must be different ones of {', '.join(OBJECTIVES)}")
    if BRIER_LM not in objectives:
        problems.append(f"objectives={objectives} must contain {BRIER_LM}")
    if sweep.pruning.rule in SINGLE and len(objectives) > 1:
        problems.append(
            f"pruning.rule={sweep.pruning.rule} needs one objective: set objectives=[{BRIER_LM}] and a budget, "
            "or pruning.rule=pareto"
        )
    if len(objectives) == 1 and sweep.pruning.rule == "pareto":
        problems.append("pruning.rule=pareto needs train_flops among the objectives: choose asha, hyperband or median")
    return problems


def _sampler_problems(sweep: SweepConfig) -> list[str]:
    sampler, problems = sweep.sampler, []
    if sampler.name not in SAMPLERS:
        return [f"sampler.name={sampler.name} must be one of {', '.join(SAMPLERS)}"]
    swept = parameters(sweep.space)
    if sampler.name != GRID and swept and sampler.points is None:
        problems.append(f"sampler.name={sampler.name} needs sampler.points, the number of points to draw")
    for key in ("points", "batch"):
        value = getattr(sampler, key)
        if value is not None and value < 1:
            problems.append(f"sampler.{key}={value} must be at least 1")
    if sampler.batch is not None and sampler.name not in ADAPTIVE:
        problems.append(f"sampler.batch is for {', '.join(ADAPTIVE)}: {sampler.name} draws the same points anyway")
    if sampler.name == "cmaes":
        if len(sweep.objectives) > 1:
            problems.append(f"sampler.name=cmaes needs one objective: set objectives=[{BRIER_LM}]")
        if swept and all(parameter.kind == CHOICE for parameter in swept):
            problems.append("sampler.name=cmaes draws numbers only: sweep an int or float range, or choose tpe")
    if sampler.name == GRID and sampler.options:
        problems.append("sampler.options: a grid takes none")
    elif sampler.name != GRID:
        try:
            make_sampler(sampler, 0)
        except ConfigError as error:
            problems.append(str(error))
    return problems


def _trial_problems(sweep: SweepConfig) -> list[str]:
    problems = []
    if len(set(sweep.seeds)) < len(sweep.seeds):
        problems.append(f"seeds={sweep.seeds} holds a seed twice")
    if any(parameter.key == "seed" for parameter in parameters(sweep.space)):
        problems.append("space.seed is not for sweeping: write seeds: [0, 1, 2], which repeats every point")
    if sweep.retries < 0 or sweep.stop_after_failures < 0:
        problems.append("retries and stop_after_failures must be at least 0")
    return problems + launch_problems(sweep.launch)


def study_name(sweep: SweepConfig, corpus_hash: str) -> str:
    """Return the name of a sweep's study: its own, and a hash of everything that changes the numbers of its trials.

    A changed number therefore starts a new study, in which runs that did not change are found and cost nothing; more
    points or seeds go on in the same one.

    Args:
        sweep: The sweep.
        corpus_hash: Hash of the corpus' manifest.
    """
    value = {key: part for key, part in asdict(sweep).items() if key not in _NOT_IN_NAME}
    value["sampler"] = {key: part for key, part in value["sampler"].items() if key != "points"}
    text = json.dumps([value, corpus_hash, RECIPE_VERSION], sort_keys=True, default=str)
    return f"{sweep.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
