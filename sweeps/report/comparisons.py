"""Which models may be compared along one key: those that are equal in everything else that was chosen.

A key is *free* where the sweep chose its values: it is swept, or it differs between the sweeps of a report. A setting
that differs although nobody chose it (a latent dimension derived as 32 * K) *follows*; it cannot be held equal, so it
is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.front.series import SETTINGS
from sweeps.report.seeds import Model

SWEEP = "sweep"
"""Stands among the free keys for which sweep a model comes from."""

_TITLES = {
    "model.K": "chunk size K",
    "model.l": "latent dimension l",
    "model.N": "model samples N",
    "model.M": "target samples M",
    "model.alpha": "exponent alpha",
    "optim.lr": "learning rate",
}


@dataclass(frozen=True)
class Contrast:
    """Models that differ along one or more keys and are equal in the other free ones.

    Attributes:
        keys: The keys that are looked at.
        equal: The other free keys and the values all models share.
        following: Settings that differ along with the keys.
        models: The models by the values of `keys`, sorted.
    """

    keys: tuple[str, ...]
    equal: dict[str, Any]
    following: tuple[str, ...]
    models: tuple[tuple[tuple[Any, ...], Model], ...]

    def equal_in_words(self) -> str:
        """Return what all models share: "K = 4, N = 8"; "" where nothing else was chosen."""
        return ", ".join(f"{short(key)} = {shown(value)}" for key, value in self.equal.items() if key != SWEEP)


def short(key: str) -> str:
    """Return the last part of a key, which is the symbol where there is one."""
    section, _, name = key.rpartition(".")
    return f"autoencoder {name}" if section.startswith("autoencoder") and name in ("d", "lr") else name


def titled(key: str) -> str:
    """Return a key for headings: what the symbol stands for, and the symbol."""
    return _TITLES.get(key, short(key))


def shown(value: Any) -> str:
    """Return a value of a key for readers."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def calm_models(models: Sequence[Model]) -> list[Model]:
    """Return the models that are not token baselines."""
    return [model for model in models if model.stage != "baseline"]


def values_of(models: Sequence[Model], key: str) -> list[Any]:
    """Return the different values of a key, sorted, absent ones left out."""
    found: list[Any] = []
    for model in models:
        value = model.setting(key)
        if value is not None and value not in found:
            found.append(value)
    return sorted(found, key=rank)


def rank(value: Any) -> tuple[int, float, str]:
    """Return what to sort values of any kind by: numbers first, by size; then the rest, by name."""
    number = isinstance(value, (int, float))
    return (0, float(value), "") if number else (1, 0.0, str(value))


def free_keys(models: Sequence[Model], sweep_of: dict[str, str]) -> list[str]:
    """Return the keys that were chosen and differ among the CALM models; `SWEEP` where several sweeps meet.

    Args:
        models: The models.
        sweep_of: Name of the study by a model's slug.
    """
    calm = calm_models(models)
    swept = dict.fromkeys(key for model in calm for key in model.runs[0].values if key != "stage")
    chosen = [key for key in swept if len(values_of(calm, key)) > 1]
    groups: dict[str, list[Model]] = {}
    for model in calm:
        groups.setdefault(sweep_of.get(model.slug, ""), []).append(model)
    if len(groups) == 1:
        return chosen
    for key in SETTINGS:
        constant = all(len(values_of(group, key)) <= 1 for group in groups.values())
        if key not in swept and constant and len(values_of(calm, key)) > 1:
            chosen.append(key)
    return [*chosen, SWEEP]


def following_keys(models: Sequence[Model], chosen: Sequence[str]) -> list[str]:
    """Return the settings that differ among the models although they are not chosen."""
    known = dict.fromkeys([*SETTINGS, *(key for model in models for key in model.runs[0].settings)])
    return [key for key in known if key not in chosen and len(values_of(models, key)) > 1]


def contrasts(models: Sequence[Model], keys: Sequence[str], sweep_of: dict[str, str]) -> list[Contrast]:
    """Return the contrasts along some keys that hold two models or more, those with most models first.

    Among contrasts of one size the one with the highest score comes first. Where two models of one contrast have the
    same values (of sweeps that differ in these keys only), the one with more seeds is taken.

    Args:
        models: The models; baselines are ignored.
        keys: Keys that differ within a contrast.
        sweep_of: Name of the study by a model's slug.
    """
    calm = calm_models(models)
    free = free_keys(models, sweep_of)
    between = not any(key in model.runs[0].values for key in keys for model in calm)
    others = [key for key in free if key not in keys and not (key == SWEEP and between)]
    groups: dict[str, list[Model]] = {}
    for model in calm:
        if all(model.setting(key) is not None for key in keys):
            groups.setdefault(repr([_held(model, key, sweep_of) for key in others]), []).append(model)
    found = []
    for group in groups.values():
        by_value: dict[str, tuple[tuple[Any, ...], Model]] = {}
        for model in sorted(group, key=lambda one: -len(one.runs)):
            values = tuple(model.setting(key) for key in keys)
            by_value.setdefault(repr(values), (values, model))
        if len(by_value) > 1:
            pairs = sorted(by_value.values(), key=lambda pair: [rank(value) for value in pair[0]])
            equal = {key: _held(group[0], key, sweep_of) for key in others}
            follow = following_keys([model for _, model in pairs], [*free, *keys])
            found.append(Contrast(tuple(keys), equal, tuple(follow), tuple(pairs)))
    return sorted(found, key=lambda one: (-len(one.models), -max(model.final.score for _, model in one.models)))


def _held(model: Model, key: str, sweep_of: dict[str, str]) -> Any:
    return sweep_of.get(model.slug, "") if key == SWEEP else model.setting(key)
