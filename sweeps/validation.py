"""What a sweep must satisfy beside its points: every contradiction at once, in words, before anything is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from calm_lightning.config.fingerprint import RECIPE_VERSION
from calm_lightning.errors import ConfigError, SweepError
from sweeps.budget.rule import check_budget
from sweeps.config import BRIER_LM, OBJECTIVES, SweepConfig
from sweeps.launchers.config import launch_problems
from sweeps.launchers.registry import launcher_class
from sweeps.pruning.config import SINGLE, validate_pruning
from sweeps.pruning.single import make_pruner
from sweeps.space.parameters import CHOICE, parameters
from sweeps.space.points import BASELINE, CALM, flatten
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
    problems = _objective_problems(sweep) + _sampler_problems(sweep) + _space_problems(sweep) + _trial_problems(sweep)
    try:
        check_budget(sweep.budget)
    except ConfigError as error:
        problems.append(str(error))
    try:
        validate_pruning(sweep.pruning)
        if sweep.pruning.rule in SINGLE:
            make_pruner(sweep.pruning)
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


def _space_problems(sweep: SweepConfig) -> list[str]:
    """Return what would have a swept key mean something else than its label says, or nothing at all."""
    keys = [parameter.key for parameter in parameters(sweep.space)]
    problems = []
    for place, values in _overriding(sweep):
        both = sorted(set(keys) & {key for key, _ in flatten(values)})
        problems += [f"{key} is swept and set by {place}: take one of the two out" for key in both]
    for parameter in parameters(sweep.space):
        if parameter.key.split(".")[0] in ("work_dir", "name", "tracking", "autoencoder_run", "checkpoint_steps"):
            problems.append(f"space.{parameter.key} changes no number: it cannot be swept")
        later = keys[keys.index(parameter.key) + 1 :]
        problems += [
            f"space.{parameter.key}.when speaks of {key}, which comes after it: put {key} first"
            for key in later
            if key in parameter.when
        ]
        if parameter.key == "stage" and not set(parameter.values) <= {CALM, BASELINE}:
            problems.append(f"space.stage={list(parameter.values)} may hold calm and baseline")
    known = {*keys, *(key for key, _ in flatten(sweep.derived))}
    for number, rule in enumerate(sweep.per_value):
        strange = sorted({key for key, _ in flatten(rule.when)} - known)
        problems += [
            f"per_value[{number}].when: {key} is neither swept nor derived, so it never holds" for key in strange
        ]
    return problems


def _overriding(sweep: SweepConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is applied after swept keys, and where it stands."""
    yield "derived", sweep.derived
    for number, rule in enumerate(sweep.per_value):
        place = f"per_value[{number}]" if rule.when else "the command line (all, autoencoder or calm)"
        yield place, rule.calm
        yield place, {key: value for key, value in rule.autoencoder.items() if key in ("model", "data", "autoencoder")}


def _trial_problems(sweep: SweepConfig) -> list[str]:
    problems = []
    if len(set(sweep.seeds)) < len(sweep.seeds):
        problems.append(f"seeds={sweep.seeds} holds a seed twice")
    if any(
        parameter.key in ("seed", "autoencoder.seed", "calm.seed", "all.seed") for parameter in parameters(sweep.space)
    ):
        problems.append("space.seed is not for sweeping: write seeds: [0, 1, 2], which repeats every point")
    if sweep.retries < 0 or sweep.stop_after_failures < 0:
        problems.append("retries and stop_after_failures must be at least 0")
    if sweep.storage not in ("sqlite", "journal") and "://" not in sweep.storage:
        problems.append(
            f"storage={sweep.storage} must be sqlite, journal, or an address such as postgresql://host/name"
        )
    try:
        launcher_class(sweep.launch.launcher)
    except SweepError as error:
        problems.append(f"launch.launcher: {error}")
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
