"""From values of swept keys to a point: the configurations of the runs that they stand for.

Points are values: equal sweeps give equal points. A key goes to the run it belongs to: what both models must agree on
(K, l, the data, the autoencoder's shape) to autoencoder and language model, everything else to the language model, and
`autoencoder.optim.lr` and its like to the autoencoder's own run.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.config import RunConfig, load_config, merge
from calm_lightning.config.validation import validate
from calm_lightning.errors import ConfigError
from sweeps.budget.fairness import check_alike, common
from sweeps.budget.forecast import COST_NAMES, Forecast, forecast
from sweeps.budget.rule import apply_budget
from sweeps.config import SweepConfig
from sweeps.space.changes import changed
from sweeps.space.expressions import evaluate, holds
from sweeps.space.parameters import Parameter, parameters

AUTOENCODER, CALM, BASELINE = "autoencoder", "calm", "baseline"
_SHARED_PREFIXES = ("autoencoder.", "data.")
_SHARED_KEYS = ("model.K", "model.l", "model.vocabulary")
_OWN_RUN = frozenset(field.name for field in fields(RunConfig)) | {"all"}
_SHAPE = frozenset(field.name for field in fields(AutoencoderConfig))
_LONGEST_SLUG = 56


@dataclass(frozen=True)
class Point:
    """One model of a sweep.

    Attributes:
        label: How tables and figures call it.
        slug: How directories and the study call it, unique within a sweep.
        stage: "calm" or "baseline".
        values: The swept keys and their values here; empty for the plain baseline.
        model: Configuration of the language model's run; `autoencoder_run` is still to be set.
        autoencoder: Configuration of its autoencoder's run; None for the baseline.
        forecast: What training it will take; None where the vocabulary is not known yet.
        refused: The constraint it breaks; "" where it breaks none.
    """

    label: str
    slug: str
    stage: str
    values: dict[str, Any]
    model: RunConfig
    autoencoder: RunConfig | None
    forecast: Forecast | None = None
    refused: str = ""

    def language_model(self, autoencoder_run: str) -> RunConfig:
        """Return the language model's configuration, made to use a trained autoencoder."""
        return replace(self.model, autoencoder_run=autoencoder_run)

    def seeded(self, seed: int, autoencoder_seed: int | None) -> Point:
        """Return the point with the seeds of one trial; None gives the autoencoder the trial's seed."""
        below = self.autoencoder
        if below is not None:
            below = replace(below, seed=seed if autoencoder_seed is None else autoencoder_seed)
        return replace(self, model=replace(self.model, seed=seed), autoencoder=below)


class PointMaker:
    """Makes points of one sweep.

    Args:
        sweep: The sweep.
        corpus: Directory of the prepared corpus.
        work_dir: Directory that holds run directories.
        vocabulary: Vocabulary size V of the corpus; None where it is not known, which leaves FLOPs uncounted.

    Raises:
        ConfigError: The search space cannot be understood.
    """

    def __init__(self, sweep: SweepConfig, corpus: Path, work_dir: Path, vocabulary: int | None = None) -> None:
        self.sweep, self.vocabulary = sweep, vocabulary
        self.parameters: tuple[Parameter, ...] = parameters(sweep.space)
        self._places = {
            "data": {"corpus": str(corpus)},
            "work_dir": str(work_dir),
            "tracking": vars(sweep.tracking),
        }
        self._short = _short_names([parameter.key for parameter in self.parameters])
        self._derived = [key for key, _ in flatten(sweep.derived)]
        self._first: dict[str, Any] = {}
        self._drafts: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
        self._bases: dict[tuple[str, tuple[int, ...]], RunConfig] = {}

    def baseline(self) -> Point:
        """Return the token baseline that stands beside the space.

        Raises:
            ConfigError: Its configuration contradicts itself.
        """
        return self._point({}, BASELINE, BASELINE, BASELINE)

    def make(self, values: Mapping[str, Any], refuse: bool = False) -> Point:
        """Return the point of some values of swept keys.

        Args:
            values: The values.
            refuse: Whether values that contradict one another make a refused point, as draws of a sampler do, rather
                than an error.

        Raises:
            ConfigError: A configuration contradicts itself; the message names the point.
        """
        stage = values.get("stage", CALM)
        named = {self._short[key]: value for key, value in values.items() if key != "stage"}
        head = "baseline" if stage == BASELINE else "CALM"
        label = f"{head} " + ", ".join(f"{name}={_shown(value)}" for name, value in named.items())
        return self._point(dict(values), str(stage), label.strip(), _slug(str(stage), named), refuse)

    def seeded(self, values: Mapping[str, Any], seed: int) -> Point:
        """Return the point of one trial: no values mean the plain baseline.

        Raises:
            ConfigError: As `make`.
        """
        point = self.make(values) if values else self.baseline()
        return point.seeded(seed, self.sweep.autoencoder_seed) if self.varies_seeds else point

    @property
    def varies_seeds(self) -> bool:
        """Whether trials have other seeds than their configurations say."""
        return bool(self.sweep.seeds) or self.sweep.autoencoder_seed is not None

    def active(self, parameter: Parameter, values: Mapping[str, Any]) -> bool:
        """Return whether a key is swept where the keys above it have these values."""
        if not parameter.when:
            return True
        draft = self._spoken_of(str(values.get("stage", CALM)), values)
        return holds(parameter.when, _names(draft), f"space.{parameter.key}.when")

    def _point(self, values: dict[str, Any], stage: str, label: str, slug: str, refuse: bool = False) -> Point:
        model, below = self._configured(values, stage, label, slug)
        point = Point(label, slug, stage, values, model, below)
        if refused := self._refused(model, None):  # what breaks a constraint need not be a valid configuration
            return replace(point, refused=refused)
        try:
            for config, one in ((model, stage), (below, AUTOENCODER)):
                if config is not None:
                    _validate(config, one, label)
        except ConfigError as error:
            if refuse:
                return replace(point, refused=str(error))
            raise
        self._first = self._first or common(model)
        check_alike(self._first, model, label, {*values, *self._derived})
        return point if self.vocabulary is None else self._with_budget(point, self.vocabulary)

    def _with_budget(self, point: Point, vocabulary: int) -> Point:
        """Return a point with the steps that the budget gives it, and what they cost."""
        try:
            model, below = apply_budget(self.sweep.budget, point.model, point.autoencoder, vocabulary)
        except ConfigError as error:  # a model that is too dear for the budget is left out, as by a constraint
            return replace(point, refused=str(error))
        costs = forecast(model, below, vocabulary)
        return replace(point, model=model, autoencoder=below, forecast=costs, refused=self._refused(model, costs))

    def _configured(
        self, values: dict[str, Any], stage: str, label: str, slug: str
    ) -> tuple[RunConfig, RunConfig | None]:
        """Return the configurations of language model and autoencoder, before the budget."""
        known = self._with_derived(values, stage)
        rules = tuple(
            index
            for index, rule in enumerate(self.sweep.per_value)
            if stage == CALM and all(known.get(key) == value for key, value in flatten(rule.when))
        )
        runs = {}
        for one in (AUTOENCODER, CALM) if stage == CALM else (stage,):
            name = "" if one == AUTOENCODER else slug if stage == BASELINE else f"{CALM}-{slug}"
            changes = {**dict(self._routed(known, one)), **dict(self._exceptions(one, rules)), "name": name}
            runs[one] = self._changed(one, rules, changes, label)
        model, below = runs[stage], runs.get(AUTOENCODER)
        return (model, None) if below is None else (replace(model, autoencoder=below.autoencoder), below)

    def _with_derived(self, values: Mapping[str, Any], stage: str) -> dict[str, Any]:
        """Return the values with those that follow from them, in the file's order."""
        known = {key: value for key, value in values.items() if key != "stage"}
        if stage != CALM or not self.sweep.derived:
            return known
        draft = self._spoken_of(CALM, known)
        for key, expression in flatten(self.sweep.derived):
            known[key] = evaluate(expression, _names(draft), f"derived.{key}")
            _put(draft, key, known[key])
        return known

    def _spoken_of(self, stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what expressions may speak of: the language model's run, with the shape of its autoencoder."""
        draft = self._draft(stage, ())
        if stage == CALM:
            draft[AUTOENCODER] = self._draft(AUTOENCODER, ())[AUTOENCODER]
        for key, value in values.items():
            _put(draft, key, value)
        return draft

    def _routed(self, values: Mapping[str, Any], stage: str) -> Iterator[tuple[str, Any]]:
        """Yield the keys and values that go to the run of one stage."""
        for key, value in values.items():
            section, _, rest = key.partition(".")
            inner = rest.split(".")[0]
            if section in (AUTOENCODER, CALM, BASELINE, "all") and inner in _OWN_RUN and inner not in _SHAPE:
                if section in (stage, "all"):
                    yield rest, value
            elif stage != AUTOENCODER or key in _SHARED_KEYS or key.startswith(_SHARED_PREFIXES):
                yield key, value

    def _exceptions(self, stage: str, rules: Sequence[int]) -> Iterator[tuple[str, Any]]:
        """Yield what the matching `per_value` rules say of one stage."""
        for index in rules:
            section = getattr(self.sweep.per_value[index], stage)
            yield from flatten({key: value for key, value in section.items() if key != "presets"})

    def _changed(self, stage: str, rules: tuple[int, ...], changes: Mapping[str, Any], label: str) -> RunConfig:
        """Return the configuration of one stage with some keys changed.

        Raises:
            ConfigError: A key is unknown, a value has the wrong type, or the whole contradicts itself.
        """
        if (stage, rules) not in self._bases:
            self._bases[stage, rules] = _merged(self._draft(stage, rules), stage, label)
        try:
            config = changed(self._bases[stage, rules], changes)
        except TypeError:  # the long way converts what can be converted, and says what is wrong with the rest
            draft = self._draft(stage, rules)
            for key, value in changes.items():
                _put(draft, key, value)
            config = _merged(draft, stage, label)
        return config

    def _draft(self, stage: str, rules: tuple[int, ...]) -> dict[str, Any]:
        """Return presets and sections of one stage as a nested dictionary of its own."""
        if (stage, rules) not in self._drafts:
            sections = [self.sweep.all, getattr(self.sweep, stage)]
            ruled = [getattr(self.sweep.per_value[index], stage) for index in rules]
            presets = [name for layer in (*sections, *ruled) for name in layer.get("presets", [])]
            draft = asdict(load_config(presets, stage=stage)) if presets else asdict(RunConfig(stage=stage))
            for layer in sections:
                for key, value in flatten({key: value for key, value in layer.items() if key != "presets"}):
                    _put(draft, key, value)
            for key, value in flatten(self._places):
                _put(draft, key, value)
            self._drafts[stage, rules] = draft
        return copy.deepcopy(self._drafts[stage, rules])

    def _refused(self, model: RunConfig, costs: Forecast | None) -> str:
        """Return the first constraint that a point breaks, with the numbers.

        Without costs, those that speak of costs are passed over.
        """
        numbers = costs.names() if costs else {}
        names = _names(asdict(model)) | numbers
        for place, constraint in enumerate(self.sweep.constraints):
            if costs is None and any(name in constraint for name in COST_NAMES):
                continue
            if not holds(constraint, names, f"constraints[{place}]"):
                found = [f"{name} = {value:.4g}" for name, value in numbers.items() if name in constraint]
                return f"{constraint} does not hold" + (f" ({', '.join(found)})" if found else "")
        return ""


def grid(maker: PointMaker) -> Iterator[dict[str, Any]]:
    """Yield all combinations of a space, each once: keys that are not swept somewhere multiply nothing there.

    Raises:
        ConfigError: A range has no number of values.
    """

    def below(index: int, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if index == len(maker.parameters):
            yield dict(values)
            return
        parameter = maker.parameters[index]
        if not maker.active(parameter, values):
            yield from below(index + 1, values)
            return
        for value in parameter.grid_values():
            yield from below(index + 1, {**values, parameter.key: value})

    if maker.parameters:
        yield from below(0, {})


def flatten(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a.b", value) for every leaf of a nested mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _put(draft: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a nested dictionary."""
    *sections, name = key.split(".")
    place = draft
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = value


def _merged(draft: Mapping[str, Any], stage: str, label: str) -> RunConfig:
    """Return a draft as a configuration, checked key by key."""
    try:
        return merge(RunConfig, [(f"section all or {stage}", OmegaConf.create({**draft, "stage": stage}))])
    except ConfigError as error:
        raise ConfigError(f"sweep, {stage} of {label}: {error}") from None


def _validate(config: RunConfig, stage: str, label: str) -> None:
    try:
        validate(config)
    except ConfigError as error:
        raise ConfigError(
            f"sweep, {stage} of {label}: {error}; change it, or leave it out with `constraints`"
        ) from None


def _names(draft: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an expression may speak of: sections of the run, and the symbols of the method."""
    sections = ("model", "autoencoder", "data", "optim", "evaluation", "trainer", "seed", "stage")
    model = draft["model"]
    symbols = {name: model.get(name) for name in ("K", "l", "N", "M", "alpha", "d")}
    symbols["l"] = 32 * model["K"] if symbols["l"] is None and isinstance(model["K"], int) else symbols["l"]
    return {name: draft[name] for name in sections} | symbols


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each key, or the whole key where two end alike."""
    last = [key.split(".")[-1] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _slug(stage: str, named: Mapping[str, Any]) -> str:
    """Return a file name for some values; what it had to shorten is told apart by a hash."""
    words = [f"{name}{_shown(value)}" for name, value in named.items()]
    said = "-".join([*([BASELINE] if stage == BASELINE else []), *words])
    text = re.sub(r"[^A-Za-z0-9._-]+", "_", said)
    exact = text == said and not any(isinstance(value, (float, list, dict)) for value in named.values())
    if exact and len(text) <= _LONGEST_SLUG:
        return text
    return f"{text[:_LONGEST_SLUG]}-{hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:6]}"
