"""What a report says in sentences: question, method, budget, fairness, what cannot be concluded."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sweeps import artifacts
from sweeps.config import BudgetConfig, SweepConfig
from sweeps.front.series import PRUNED, Series
from sweeps.front.tracked import UNFINISHED
from sweeps.report.comparisons import calm_models, following_keys, short, shown, titled, values_of
from sweeps.report.findings import Findings
from sweeps.report.gathering import Gathered
from sweeps.report.seeds import complete
from sweeps.report.tables import quantity, scientific


def question(findings: Findings) -> list[str]:
    """Return what is asked, in sentences."""
    models = findings.models
    if len(models) == 1:
        return [f"How well does {models[0].label} continue text, and what did that cost?"]
    calm, tokens = calm_models(models), [model for model in models if model.stage == "baseline"]
    if len(calm) == len(tokens) == 1:
        return [
            f"How do {calm[0].label} and the token Transformer {tokens[0].label} compare, in what a score costs to "
            "train and in what the models cost to use?"
        ]
    varied = [f"{titled(key)} ({_values(findings, key)})" for key in findings.free]
    asked = "Which models give the highest BrierLM for their training FLOPs"
    lines = [f"{asked}, when these are varied: {'; '.join(varied)}?" if varied else f"{asked}?"]
    follow = following_keys(calm, findings.free)
    if varied and follow:
        shown_keys = ", ".join(dict.fromkeys(short(key) for key in follow))
        lines.append(f"These follow from what is varied, or go along with it: {shown_keys}.")
    if tokens and calm:
        lines.append("A token Transformer with the same data is trained beside them as the baseline.")
    return lines


def _values(findings: Findings, key: str) -> str:
    values = values_of(calm_models(findings.models), key)
    if len(values) <= 8:
        return ", ".join(shown(value) for value in values)
    return f"{len(values)} values from {shown(values[0])} to {shown(values[-1])}"


def method(gathered: Gathered) -> list[str]:
    """Return how it was asked."""
    lines = [
        "CALM packs K tokens into one latent vector with an autoencoder and predicts the next latent instead of the "
        "next token. BrierLM is the geometric mean of Brier-1 to Brier-4, in percent, estimated from the model's own "
        "samples; higher is better.",
        "Every evaluation during training is a point of the plane of training FLOPs and BrierLM. The front holds those "
        "that no other beats in both.",
    ]
    for record in gathered.records:
        sampler = record.config.sampler
        drawn = "all combinations" if sampler.points is None else f"{sampler.points} points"
        lines.append(f"{record.study}: {drawn} from the sampler {sampler.name}.")
    return lines


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
    return " · ".join([*([f"{corpora} corpus"] if corpora else []), *counts(gathered, len(findings.models))])


def counts(gathered: Gathered, models: int) -> list[str]:
    """Return how many models, runs and seeds there are, and what became of them."""
    seeds = sorted({one.seed for one in gathered.series})
    what = "trial" if gathered.records else "run"
    unfinished = sum(one.state == UNFINISHED for one in gathered.series)
    parts = [counted(models, "model"), counted(len(gathered.series), what)]
    parts += [f"{gathered.stopped} stopped early"] if gathered.stopped else []
    parts += [f"{gathered.failed} failed"] if gathered.failed else []
    parts += [f"{unfinished} unfinished"] if unfinished else []
    parts += [f"{gathered.unfinished} still to come"] if gathered.unfinished else []
    return [*parts, f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"]


def counted(number: int, what: str) -> str:
    """Return a number with its noun: "1 run", "3 runs"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


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
    if calm_models(findings.models):
        lines.append(
            "Training FLOPs include those of the model's autoencoder in full, also where several models share one."
        )
    if len(findings.gathered.series) > 1:
        lines.append(_order({key for one in findings.gathered.series for key in (*one.values, *one.settings)}))
    seeds = sorted({one.seed for one in findings.gathered.series})
    for record in findings.gathered.records:
        lines += _exceptions(record.config, len(seeds))
    return list(dict.fromkeys(lines))


def _order(swept: set[str]) -> str:
    moved = sorted(key for key in swept if key.split(".")[0] in ("data", "evaluation", "seed"))
    if moved:
        return f"Data or evaluation differ between models, because these keys differ: {', '.join(moved)}."
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
    lines += _missing(findings)
    lines += _uncertain(findings)
    if len(findings.models) > 2:
        lines.append(
            f"The best of {len(findings.models)} models was chosen by its score, which is therefore too good; that of "
            "a run with a fresh seed is not."
        )
    lines.append(
        "An evaluation in the middle of a training is not what a training for that budget would give: where the "
        "learning rate comes down, it had not done so yet."
    )
    several = len(findings.models) > 1
    if several and not any(key.endswith("optim.lr") for key in findings.free):
        lines.append("Learning rates were not tuned for each model: another one could favour another model.")
    if several and any(model.stage == "baseline" for model in findings.models) and calm_models(findings.models):
        lines.append("CALM starts more slowly than a Transformer and gains later: small budgets favour the baseline.")
    if len(gathered.records) > 1:
        lines.append("The sweeps may differ in budget, corpus and protocol; compare across them with care.")
    if not gathered.records:
        lines.append(
            "BrierLM depends on corpus, tokenizer and block length: these numbers compare with one another only."
        )
    return list(dict.fromkeys(lines))


def _missing(findings: Findings) -> list[str]:
    """Return what is not there, and what that does to the rest."""
    gathered, lines = findings.gathered, []
    if gathered.unfinished:
        missing = f"{gathered.unfinished} {'trial is' if gathered.unfinished == 1 else 'trials are'} missing"
        lines.append(f"{missing}: the sweep goes on or was stopped, and the front can still move.")
    unfinished = sum(one.state == UNFINISHED for one in gathered.series)
    if unfinished:
        runs = f"{unfinished} of {counted(len(gathered.series), 'run')} {'is' if unfinished == 1 else 'are'} unfinished"
        lines.append(f"{runs}: their last scores are not those of a whole training.")
    if gathered.stopped:
        lines.append(
            f"{counted(gathered.stopped, 'run')} {'was' if gathered.stopped == 1 else 'were'} stopped early: the last "
            "score is then not that of a whole training."
        )
    if gathered.failed:
        lines.append("Failed trials have no score: what failed more often looks better than it is.")
    return lines


def _uncertain(findings: Findings) -> list[str]:
    """Return what seeds say, and do not say."""
    single, lines = sum(model.single for model in findings.models), []
    if single and len(findings.models) == 1:
        lines.append("There is one run with one seed: its interval does not hold what another seed would change.")
    elif single:
        lines.append(
            f"Trained with one seed: {single} of {len(findings.models)} models. Their intervals do not hold what "
            "another seed would change, so neighbours cannot be ranked."
        )
    if findings.several_seeds:
        lines.append("With few seeds the spread between them is itself uncertain; Student's t widens the intervals.")
    return lines


def failures(gathered: Gathered) -> list[tuple[str, str, str, str]]:
    """Return trial, model, seed and reason of every failed or stopped trial."""
    found = []
    for mark, record in zip(gathered.marks, gathered.records, strict=True):
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


def sweep_commands(gathered: Gathered) -> list[str]:
    """Return the commands that repeat the sweeps."""
    return [f"calm sweep run {_path(record.directory / artifacts.CONFIG)}" for record in gathered.records]


def _path(path: Path) -> str:
    """Return a path for the command line, relative where it lies below the current directory."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def report_command(gathered: Gathered, out: Path | None) -> str:
    """Return the command that makes this report anew."""
    places = [_path(record.directory) for record in gathered.records]
    tail = [] if out is None else ["--out", _path(out)]
    return " ".join(["calm sweep report", *places, *tail])


def train_commands(series: Sequence[Series]) -> list[str]:
    """Return the commands that repeat some runs, autoencoders first; a run that is there is found, not repeated."""
    below = dict.fromkeys(one.autoencoder_dir for one in series if one.autoencoder_dir)
    runs = [("autoencoder", place) for place in below] + [(one.stage, one.run_dir) for one in series]
    return [f"calm train {stage} {_path(Path(place) / 'config.yaml')}" for stage, place in runs]
