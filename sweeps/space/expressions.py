"""Expressions in sweep files: `32 * model.K`, `train_flops <= 2e13`, `{32: 0.05, 64: 0.10}[model.l]`.

They are arithmetic on the keys of a configuration and nothing else: simpleeval evaluates the syntax tree itself, so a
sweep file from a colleague cannot run code.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from simpleeval import AssignmentAttempted, EvalWithCompoundTypes, InvalidExpression

from calm_lightning.errors import ConfigError

_FUNCTIONS = {
    "abs": abs,
    "ceil": math.ceil,
    "floor": math.floor,
    "int": int,
    "log2": math.log2,
    "log10": math.log10,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
}


def namespace(values: Mapping[str, Any]) -> SimpleNamespace:
    """Return nested mappings as objects, so that `model.K` in an expression reads `{"model": {"K": ...}}`."""
    return SimpleNamespace(
        **{
            key: namespace(value) if isinstance(value, Mapping) and all(map(_is_name, value)) else value
            for key, value in values.items()
        }
    )


def _is_name(key: object) -> bool:
    return isinstance(key, str) and key.isidentifier()


def evaluate(expression: object, names: Mapping[str, Any], place: str) -> Any:
    """Return what an expression is worth; what is no string stands for itself.

    Args:
        expression: The expression.
        names: What it may speak of; nested mappings are reached with dots.
        place: Where it stands, for the error message, for example "derived.model.l".

    Raises:
        ConfigError: It cannot be evaluated, or speaks of something that is not there.
    """
    if not isinstance(expression, str):
        return expression
    known = vars(namespace(names))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", AssignmentAttempted)  # "K = 4" is meant to be "K == 4"
            return EvalWithCompoundTypes(names=known, functions=_FUNCTIONS).eval(expression)
    except (
        AssignmentAttempted,
        InvalidExpression,
        SyntaxError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        RecursionError,
        AttributeError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{place}: {expression!r} cannot be evaluated ({reason}); it may use {', '.join(sorted(known))} "
            f"and {', '.join(sorted(_FUNCTIONS))}"
        ) from None


def holds(expression: object, names: Mapping[str, Any], place: str) -> bool:
    """Return whether a condition holds.

    Raises:
        ConfigError: As `evaluate`, or it is no condition.
    """
    found = evaluate(expression, names, place)
    if not isinstance(expression, str) or not isinstance(found, bool):
        raise ConfigError(f"{place}: {expression!r} is no condition: write one that is true or false, such as K <= 4")
    return found
