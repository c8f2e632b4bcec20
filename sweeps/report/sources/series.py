"""Reported runs -> series: which of them are seeds of one model, and in which settings models differ.

A sweep knows what it varied. Of runs that were started one by one it is found: two runs are seeds of one model if their
identities are equal once seeds are left out, and a key was varied if models differ in it and it is a part of their
identity. A key whose value is decided by that of an earlier one (the steps of each K) was not varied by itself: it
follows, and is named beside comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from calm_lightning.config import RunConfig, identity
from calm_lightning.errors import CalmError
from sweeps.budget.rule import report_of
from sweeps.front.series import COMPLETE, PRUNED, SETTINGS, Series
from sweeps.front.tracked import UNFINISHED
from sweeps.report.comparisons import short, shown
from sweeps.report.sources.keys import flat_keys, matters
from sweeps.report.sources.run import AUTOENCODER, FINISHED, STOPPED, ReportedRun

_NOT_VARIED = ("seed", "stage", "name", "work_dir", "autoencoder_run", "checkpoint_steps", "tracking")
_CORPUS_ONLY = "corpus"
_STATES = {FINISHED: COMPLETE, STOPPED: PRUNED}


@dataclass(frozen=True)
class _Known:
    """A run with what its settings are read from.

    Attributes:
        run: The run.
        config: Its configuration, None where it is not known.
        below: That of its autoencoder, None where it has none or it is not known.
        slug: Equal for seeds of one model.
        flat: Every key of the configuration; those of the autoencoder's run begin with `autoencoder.`.
    """

    run: ReportedRun
    config: RunConfig | None
    below: RunConfig | None
    slug: str
    flat: Mapping[str, Any]


def series_of(runs: Sequence[ReportedRun], autoencoders: Mapping[str, ReportedRun]) -> list[Series]:
    """Return the series of language models that have an evaluation, in their order.

    Args:
        runs: Language models.
        autoencoders: Autoencoders by identity, as far as they are at hand.
    """
    known = [_known(run, autoencoders) for run in runs if run.points]
    varied = {stage: _varied([one for one in known if one.run.stage == stage]) for stage in ("calm", "baseline")}
    labels = _labels(known, varied)
    found = []
    for number, one in enumerate(known):
        chosen, following = varied.get(one.run.stage, ((), ()))
        found.append(
            Series(
                label=labels[one.slug],
                stage=one.run.stage,
                values={key: one.flat[key] for key in chosen if key in one.flat},
                parameters=_parameters(one),
                points=one.run.points,
                run_dir=one.run.run_dir,
                autoencoder_dir=one.run.autoencoder_dir or one.run.autoencoder,
                mlflow_run_id=one.run.mlflow_run_id or None,
                text=one.run.text,
                slug=one.slug,
                seed=one.run.seed,
                trial=_whole_number(one.run.tags.get("trial"), number),
                state=_STATES.get(one.run.state, UNFINISHED),
                settings=_settings(one) | {key: one.flat[key] for key in following if key in one.flat},
                reason=one.run.reason,
                finished=one.run.ended,
            )
        )
    return found


def _known(run: ReportedRun, autoencoders: Mapping[str, ReportedRun]) -> _Known:
    config = run.config()
    beneath = autoencoders.get(run.autoencoder)
    below = beneath.config() if beneath is not None else None
    if config is None:
        tags = {f"model.{name}": run.tags[name] for name in ("K", "l", "N", "M", "head") if run.tags.get(name)}
        return _Known(run, None, below, run.tags.get("slug") or run.name, tags)
    corpus = str(run.protocol.get(_CORPUS_ONLY, ""))
    lineage = {_CORPUS_ONLY: corpus}
    if run.stage == "calm":
        seedless = identity(replace(below, seed=0), corpus=corpus) if below is not None else run.autoencoder
        lineage[AUTOENCODER] = seedless
    flat = flat_keys(config)
    if below is not None:
        flat |= {_of_autoencoder(key): value for key, value in flat_keys(below).items()}
    return _Known(run, config, below, identity(replace(config, seed=0), **lineage), flat)


def _of_autoencoder(key: str) -> str:
    """Return how a key of an autoencoder's run is called among those of the language model, as sweeps call it."""
    return key if key.startswith(f"{AUTOENCODER}.") else f"{AUTOENCODER}.{key}"


def _varied(known: Sequence[_Known]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys in which models of one stage differ: those that were varied, and those that follow."""
    models = list({one.slug: one for one in known if one.config is not None}.values())
    keys = [key for key in dict.fromkeys(key for one in models for key in one.flat) if _differs(models, key)]
    ordered = [key for key in SETTINGS if key in keys] + sorted(key for key in keys if key not in SETTINGS)
    chosen: list[str] = []
    for key in ordered:
        if not any(_decides(models, other, key) for other in chosen):
            chosen.append(key)
    return tuple(chosen), tuple(key for key in ordered if key not in chosen)


def _differs(models: Sequence[_Known], key: str) -> bool:
    """Return whether models differ in a key that makes a difference."""
    own = key.removeprefix(f"{AUTOENCODER}.")
    if own.split(".")[0] in _NOT_VARIED or key.startswith(f"{AUTOENCODER}.model."):
        return False
    first = models[0]
    other = next((one for one in models if repr(one.flat.get(key)) != repr(first.flat.get(key))), None)
    if other is None:
        return False
    if not key.startswith(f"{AUTOENCODER}."):
        assert first.config is not None
        return matters(first.config, key, other.flat.get(key))
    if own in flat_keys(RunConfig()) and first.below is not None:
        return matters(first.below, own, other.flat.get(key))
    return True


def _decides(models: Sequence[_Known], key: str, follower: str) -> bool:
    """Return whether the value of one key decides that of another."""
    pairs = {(repr(one.flat.get(key)), repr(one.flat.get(follower))) for one in models}
    return len(pairs) == len({value for value, _ in pairs})


def _settings(one: _Known) -> dict[str, Any]:
    """Return what reports compare by; the baseline has none of the continuous model's."""
    if one.config is None or one.run.stage == "calm":
        return {key: one.flat[key] for key in SETTINGS if key in one.flat}
    return {key: one.flat[key] for key in SETTINGS if key in one.flat and matters(one.config, key, None)}


def _labels(known: Sequence[_Known], varied: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> dict[str, str]:
    """Return how each model is called: as in its sweep where all have one, else by its run's name without the seed."""
    of_sweeps = all(one.run.tags.get("model") for one in known)
    names = {
        one.slug: one.run.tags["model"] if of_sweeps else one.run.name.removesuffix(f"-s{one.run.seed}")
        for one in known
    }
    taken = list(names.values())
    for one in known:
        if taken.count(names[one.slug]) > 1:
            chosen = varied.get(one.run.stage, ((), ()))[0]
            values = ", ".join(f"{short(key)} = {shown(one.flat.get(key))}" for key in chosen)
            names[one.slug] = f"{names[one.slug]} ({values or one.slug[:8]})"
    return names


def _parameters(one: _Known) -> int:
    """Return the trained parameters, 0 where they are not known."""
    if one.config is None or one.config.model.vocabulary is None:
        return 0
    try:
        return report_of(one.config, one.config.model.vocabulary).parameters_total
    except CalmError:
        return 0


def _whole_number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isdigit() else otherwise
