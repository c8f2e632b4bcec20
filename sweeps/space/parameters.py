"""Swept keys: what a search space in YAML says of each, checked, with the distribution Optuna draws from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from calm_lightning.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

CHOICE, INT, FLOAT = "choice", "int", "float"
KINDS = (CHOICE, INT, FLOAT)
_OPTIONS = {CHOICE: {"when"}, INT: {"when", "log", "step", "grid"}, FLOAT: {"when", "log", "step", "grid"}}
_EXAMPLE = (
    "write a list of values, {choice: [1, 2, 4]}, {int: [32, 256], step: 32} or {float: [1.0e-4, 1.0e-2], log: true}"
)


@dataclass(frozen=True)
class Parameter:
    """One swept key.

    Attributes:
        key: The key, for example "model.K".
        kind: One of `KINDS`.
        values: Kind "choice": its values, in order.
        low: Smallest value of a range.
        high: Largest value of a range.
        step: Distance between values; None where every number counts.
        log: Whether a range is drawn on a logarithmic scale.
        grid: Values of a range without step that a grid takes.
        when: Expression over keys above it; the key is swept only where it holds. "" always.
    """

    key: str
    kind: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    grid: int | None = None
    when: str = ""

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution of the encoded values."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == CHOICE:
            return CategoricalDistribution([self.encode(value) for value in self.values])
        if self.kind == INT:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def suggest(self, trial: Trial) -> Any:
        """Draw a value for an Optuna trial."""
        if self.kind == CHOICE:
            return self.decode(trial.suggest_categorical(self.key, [self.encode(value) for value in self.values]))
        if self.kind == INT:
            return trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def encode(self, value: Any) -> Any:
        """Return a value as Optuna stores it: lists and mappings, which it has no type for, as JSON text."""
        return json.dumps(value) if isinstance(value, (list, dict)) else value

    def decode(self, stored: Any) -> Any:
        """Return the value that `encode` stored."""
        if self.kind != CHOICE:
            return stored
        return next(value for value in self.values if self.encode(value) == stored)

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the space."""
        if self.kind == CHOICE:
            return any(value == one and type(value) is type(one) for one in self.values)
        allowed = (int,) if self.kind == INT else (int, float)
        if not isinstance(value, allowed) or isinstance(value, bool) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / (self.step or 1)
        return self.step is None or abs(steps - round(steps)) < 1e-9

    def grid_values(self) -> list[Any]:
        """Return the values that a grid takes.

        Raises:
            ConfigError: It is a range without step, and no number of values is given.
        """
        if self.kind == CHOICE:
            return list(self.values)
        if self.grid is not None:
            found = [self._along(index / max(1, self.grid - 1)) for index in range(self.grid)]
            return list(dict.fromkeys(found))
        if self.kind == FLOAT and self.step is None:
            raise ConfigError(
                f"space.{self.key} is a range without steps, which a grid cannot enumerate: "
                f"add grid: 5 (five values), or choose another sampler.name"
            )
        step, count = self.step or 1, math.floor((self.high - self.low) / (self.step or 1) + 1e-9)
        return [int(self.low + i * step) if self.kind == INT else self.low + i * step for i in range(count + 1)]

    def at(self, fraction: float) -> Any:
        """Return the value at a place in [0, 1) of the key's range: equal shares for choices and steps."""
        if self.kind == CHOICE:
            return self.values[min(int(fraction * len(self.values)), len(self.values) - 1)]
        if self.kind == INT and not self.log:
            step = int(self.step or 1)
            return int(self.low) + step * int(fraction * ((self.high - self.low) // step + 1))
        return self._along(fraction)

    @property
    def finite(self) -> bool:
        """Whether the key has finitely many values."""
        return self.kind != FLOAT or self.step is not None

    def every_value(self) -> list[Any]:
        """Return all values of a finite key."""
        if self.kind == INT and self.log:
            return list(range(int(self.low), int(self.high) + 1))
        return replace(self, grid=None).grid_values()

    def _along(self, fraction: float) -> Any:
        """Return the value that lies a fraction of the way from low to high, on its scale and its steps."""
        value = (
            self.low * (self.high / self.low) ** fraction if self.log else self.low + fraction * (self.high - self.low)
        )
        if self.step is not None:
            value = self.low + round((value - self.low) / self.step) * self.step
        return round(value) if self.kind == INT else min(value, self.high)


def leaves(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("model.K", what it may be) for every swept key of a nested space.

    What stands below a section's key is an entry, so that one that is misspelt is not taken for a deeper key.
    """
    for key, value in space.items():
        section = not prefix or key in ("autoencoder", "model", "optim", "data", "evaluation", "trainer")
        if isinstance(value, Mapping) and value and section and not any(kind in value for kind in KINDS):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parameters(space: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Return the swept keys of a search space, in its order.

    Raises:
        ConfigError: An entry cannot be understood; the message names it and says how one is written.
    """
    return tuple(_parameter(key, entry) for key, entry in leaves(space))


def _parameter(key: str, entry: Any) -> Parameter:
    place = f"space.{key}"
    if not isinstance(entry, Mapping):
        return Parameter(key, CHOICE, _choices(place, entry))
    kinds = [kind for kind in KINDS if kind in entry]
    if len(kinds) != 1:
        raise ConfigError(f"{place}={dict(entry)} names {' and '.join(kinds) or 'no kind of value'}: {_EXAMPLE}")
    (kind,) = kinds
    unknown = sorted(set(entry) - _OPTIONS[kind] - {kind})
    if unknown:
        raise ConfigError(f"{place}: unknown {', '.join(unknown)}; {kind} takes {', '.join(sorted(_OPTIONS[kind]))}")
    when = str(entry.get("when", ""))
    if kind == CHOICE:
        return Parameter(key, CHOICE, _choices(place, entry[kind]), when=when)
    return _range(place, key, kind, entry, when)


def _choices(place: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ConfigError(
            f"{place}={values} must be a list of at least one value, for example [1, 2, 4, 8]; {_EXAMPLE}"
        )
    if len({json.dumps(value) for value in values}) < len(values):
        raise ConfigError(f"{place}={values} holds a value twice")
    return tuple(values)


def _range(place: str, key: str, kind: str, entry: Mapping[str, Any], when: str) -> Parameter:
    ends, log, step, grid = entry[kind], entry.get("log", False), entry.get("step"), entry.get("grid")
    number = int if kind == INT else (int, float)
    for name, value, types in (("log", log, bool), ("step", step, number), ("grid", grid, int)):
        given = value is not None
        if given and (not isinstance(value, types) or (types is not bool and isinstance(value, bool))):
            raise ConfigError(f"{place}: {name}={value!r} is not of the right kind; {_EXAMPLE}")
    numbers = isinstance(ends, Sequence) and not isinstance(ends, str) and len(ends) == 2
    if not numbers or not all(isinstance(end, (int, float)) and math.isfinite(end) for end in ends):
        raise ConfigError(f"{place}: {kind} must be [smallest, largest], two numbers; {_EXAMPLE}")
    low, high = ends
    problems = []
    if kind == INT and not all(float(end).is_integer() for end in ends):
        problems.append("its ends must be whole numbers")
    if low > high:
        problems.append(f"the smallest value {low} is above the largest {high}")
    if log and low <= 0:
        problems.append("a logarithmic range must begin above 0")
    if log and step is not None:
        problems.append("a logarithmic range has no step (use grid for the number of values)")
    if step is not None and not step > 0:
        problems.append(f"step={step} must be above 0")
    if grid is not None and (not isinstance(grid, int) or grid < 1):
        problems.append(f"grid={grid} must be a whole number of at least 1")
    if problems:
        raise ConfigError(f"{place}: {'; '.join(problems)}")
    if step is not None:  # Optuna's ranges end on a step
        high = low + math.floor((high - low) / step + 1e-9) * step
    return Parameter(key, kind, (), low, high, step, log, grid, when)
