"""What a report says in sentences: question, budget, fairness, what cannot be concluded, how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from calm_lightning.config import read_yaml
from calm_lightning.errors import CalmError
from sweeps import artifacts
from sweeps.config import BudgetConfig, SweepConfig
from sweeps.front.series import PRUNED, Series
from sweeps.report.comparisons import calm_models, shown, titled, values_of
from sweeps.report.findings import Findings
from sweeps.report.seeds import complete
from sweeps.report.tables import quantity, scientific


def question(findings: Findings) -> list[str]:
    """Return what the sweep asks, in sentences."""
    varied = [f"{titled(key)} ({_values(findings, key)})" for key in findings.free]
    asked = "Which models give the highest BrierLM for their training FLOPs"
    lines = [f"{asked}, when these are varied: {'; '.join(varied)}?" if varied else f"{asked}?"]
    if any(model.stage == "baseline" for model in findings.models):
        lines.append("A token Transformer with the same data is trained beside them as the baseline.")
    return lines


def _values(findings: Findings, key: str) -> str:
    values = values_of(calm_models(findings.models), key)
    if len(values) <= 8:
        return ", ".join(shown(value) for value in values)
    return f"{len(values)} values from {shown(values[0])} to {shown(values[-1])}"


def method(findings: Findings) -> list[str]:
    """Return how it was asked."""
    lines = [
        "CALM packs K tokens into one latent vector with an autoencoder and predicts the next latent instead of the "
        "next token. BrierLM is the geometric mean of Brier-1 to Brier-4, in percent, estimated from the model's own "
        "samples; higher is better.",
        "Every evaluation during training is a point of the plane of training FLOPs and BrierLM. The front holds those "
        "that no other beats in both.",
    ]
    for record in findings.gathered.records:
        sampler = record.config.sampler
        drawn = "all combinations" if sampler.points is None else f"{sampler.points} points"
        lines.append(f"{record.study}: {drawn} from the sampler {sampler.name}.")
    protocol = evaluation_protocol(findings.gathered.series)
    return [*lines, *([protocol] if protocol else [])]


def evaluation_protocol(series: Sequence[Series]) -> str:
    """Return how scores were measured, from the configuration in a run directory; "" where it is gone."""
    for one in series:
        path = Path(one.run_dir) / "config.yaml"
        if path.is_file():
            try:
                config: Any = read_yaml(path)
                data, evaluation = config["data"], config["evaluation"]
                return (
                    f"Scored in blocks of {data['block_tokens']} tokens at every {evaluation['start_stride']}th token "
                    f"with {evaluation['samples']} samples."
                )
            except (CalmError, KeyError, TypeError):
                return ""
    return ""


def budget_rule(budget: BudgetConfig) -> str:
    """Return the budget rule as a sentence."""
    if budget.rule == "tokens":
        text = f"Every language model is trained on {quantity(budget.tokens or 0)} text tokens"
    elif budget.rule == "flops":
        paid = "its autoencoder's included" if budget.include_autoencoder else "its autoencoder's on top"
        text = f"Every model may spend {scientific(budget.flops or 0)} training FLOPs, {paid}"
    else:
        text = "Every language model is trained for the optimiser steps of its configuration"
    if budget.autoencoder_tokens is not None:
        text += f"; every autoencoder on {quantity(budget.autoencoder_tokens)} text tokens"
    return f"{text}."


def budget_line(findings: Findings) -> str:
    """Return corpus, counts and seeds in one line."""
    gathered = findings.gathered
    corpora = " and ".join(dict.fromkeys(Path(record.config.corpus.out).name for record in gathered.records))
    seeds = sorted({one.seed for one in gathered.series})
    stopped = sum(one.state == PRUNED for one in gathered.series)
    failed = sum(len(record.failures) for record in gathered.records)
    parts = [f"{corpora} corpus", f"{len(findings.models)} models", f"{len(gathered.series)} trials"]
    parts += [f"{stopped} stopped early"] if stopped else []
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{gathered.unfinished} still to come"] if gathered.unfinished else []
    return " · ".join([*parts, f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"])


def fairness(findings: Findings) -> list[str]:
    """Return what was held equal, and what was not."""
    lines = []
    whole = [model for model in findings.models if complete(model)]
    if whole:
        tokens = [model.final.text_tokens for model in whole]
        costs = [model.final.train_flops for model in whole]
        lines.append(
            f"Completely trained models saw {_span(tokens, quantity)} text tokens and took {_span(costs, scientific)} "
            "training FLOPs."
        )
    lines.append(
        "Training FLOPs include those of the model's autoencoder in full, also where several models share one."
    )
    swept = {key for one in findings.gathered.series for key in one.values}
    lines.append(_order(swept))
    seeds = sorted({one.seed for one in findings.gathered.series})
    for record in findings.gathered.records:
        lines += _exceptions(record.config, len(seeds))
    return list(dict.fromkeys(lines))


def _order(swept: set[str]) -> str:
    moved = sorted(key for key in swept if key.split(".")[0] in ("data", "evaluation", "seed"))
    if moved:
        return f"Data or evaluation differ between models, because these keys are swept: {', '.join(moved)}."
    return (
        "Data order is the same for all models of one seed; evaluation blocks and start positions are the same for all "
        "models and seeds."
    )


def _exceptions(config: SweepConfig, seeds: int) -> list[str]:
    """Return what a sweep file sets for some models only, and whether seeds share autoencoders."""
    lines = []
    if config.per_value:
        rules = [_flow(rule.when) if rule.when else "all CALM models" for rule in config.per_value]
        lines.append(f"Some models have settings of their own (per_value of the sweep: {'; '.join(rules)}).")
    if config.derived:
        lines.append(f"These settings follow from others: {_flow(config.derived)}.")
    if seeds > 1 and config.autoencoder_seed is not None:
        lines.append("All seeds share one autoencoder: the spread between seeds holds the language model's part only.")
    return lines


def _flow(value: dict[str, Any]) -> str:
    """Return a nested mapping as YAML in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).strip()


def _span(values: Sequence[float], word: Any) -> str:
    low, high = min(values), max(values)
    return str(word(low)) if high - low <= 1e-3 * high else f"{word(low)} to {word(high)}"


def limits(findings: Findings) -> list[str]:
    """Return what cannot be concluded: what the sweep file says, and what follows from what is there."""
    gathered = findings.gathered
    lines = [caveat for record in gathered.records for caveat in record.config.caveats]
    if gathered.unfinished:
        missing = f"{gathered.unfinished} {'trial is' if gathered.unfinished == 1 else 'trials are'} missing"
        lines.append(f"{missing}: the sweep goes on or was stopped, and the front can still move.")
    single = sum(model.single for model in findings.models)
    if single:
        lines.append(
            f"Trained with one seed: {single} of {len(findings.models)} models. Their intervals do not hold what "
            "another seed would change, so neighbours cannot be ranked."
        )
    if findings.several_seeds:
        lines.append("With few seeds the spread between them is itself uncertain; Student's t widens the intervals.")
    stopped = sum(one.state == PRUNED for one in gathered.series)
    if stopped:
        lines.append(f"{stopped} trials were stopped early: their last scores are not those of a whole training.")
    if sum(len(record.failures) for record in gathered.records):
        lines.append("Failed trials have no score: what failed more often looks better than it is.")
    if len(findings.models) > 2:
        lines.append(
            f"The best of {len(findings.models)} models was chosen by its score, which is therefore too good; that of "
            "a run with a fresh seed is not."
        )
    lines.append(
        "An evaluation in the middle of a training is not what a training for that budget would give: where the "
        "learning rate comes down, it had not done so yet."
    )
    if not any(key.endswith("optim.lr") for key in findings.free):
        lines.append("Learning rates were not tuned for each model: another one could favour another model.")
    if any(model.stage == "baseline" for model in findings.models):
        lines.append("CALM starts more slowly than a Transformer and gains later: small budgets favour the baseline.")
    if len(gathered.records) > 1:
        lines.append("The sweeps may differ in budget, corpus and protocol; compare across them with care.")
    return list(dict.fromkeys(lines))


def failures(findings: Findings) -> list[tuple[str, str, str, str]]:
    """Return trial, model, seed and reason of every failed or stopped trial."""
    found = []
    for mark, record in zip(findings.gathered.marks, findings.gathered.records, strict=True):
        found += [
            (f"{mark}{failure.trial}", failure.label, str(failure.seed), f"failed: {failure.reason}")
            for failure in record.failures
        ]
        found += [
            (f"{mark}{one.trial}", one.label, str(one.seed), f"stopped early: {one.reason or 'no reason kept'}")
            for one in record.series
            if one.state == PRUNED
        ]
    return found


def sweep_commands(findings: Findings) -> list[str]:
    """Return the commands that repeat the sweeps."""
    records = findings.gathered.records
    return [f"calm sweep run {_path(record.directory / artifacts.CONFIG)}" for record in records]


def _path(path: Path) -> str:
    """Return a path for the command line, relative where it lies below the current directory."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def report_command(findings: Findings, out: Path | None) -> str:
    """Return the command that makes this report anew."""
    places = [_path(record.directory) for record in findings.gathered.records]
    tail = [] if out is None else ["--out", _path(out)]
    return " ".join(["calm sweep report", *places, *tail])


def train_commands(series: Sequence[Series]) -> list[str]:
    """Return the commands that repeat some runs, autoencoders first; a run that is there is found, not repeated."""
    below = dict.fromkeys(one.autoencoder_dir for one in series if one.autoencoder_dir)
    runs = [("autoencoder", place) for place in below] + [(one.stage, one.run_dir) for one in series]
    return [f"calm train {stage} {_path(Path(place) / 'config.yaml')}" for stage, place in runs]
