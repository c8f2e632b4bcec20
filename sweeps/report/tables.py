"""A sweep in words and numbers: the terminal's table, the CSV of all evaluations, the Markdown summary.

All three are made from the same `Series`, so they cannot disagree; the CSV is the one to compute with.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from calm_lightning.metrics.names import ScorePoint
from sweeps.front.pareto import hypervolume
from sweeps.front.series import Series, front_points

LEARNED_AT = 3.0
"""Standard errors above the untrained model from which a model counts as having learned something."""
_COLUMNS = ("model", "params", "training FLOPs", "FLOPs per token", "text tokens", "BrierLM [95 %]", "on front")
_BRIER_COLUMNS = ("model", "Brier-1", "Brier-2", "Brier-3", "Brier-4")
_FRONT_NOTE = (
    "Training FLOPs include the autoencoder's; FLOPs per token are those of generating text. On front: evaluations "
    "that no other beats in both training FLOPs and BrierLM; * the last one is among them."
)


@dataclass(frozen=True)
class Budget:
    """What a sweep was given, for every text that goes with its numbers.

    Attributes:
        title: Heading.
        corpus: The corpus and its vocabulary in a few words.
        protocol: How it was scored: block length, start positions, samples.
        machine: Where it ran.
        caveats: What this budget can and cannot show.
    """

    title: str
    corpus: str
    protocol: str
    machine: str
    caveats: tuple[str, ...]

    def line(self) -> str:
        """Return corpus, protocol and machine as one line."""
        return " · ".join(part for part in (self.corpus, self.protocol, self.machine) if part)


def quantity(value: float) -> str:
    """Return a number with three digits and a unit prefix of counting: 12.3M, 4.56B; plain below 1000."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def scientific(value: float) -> str:
    """Return a number in the shortest scientific form of three digits: 4.98e13."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def interval(point: ScorePoint) -> str:
    """Return BrierLM with its 95 % interval."""
    return f"{point.brier_lm:.2f} [{point.brier_lm_low:.2f}, {point.brier_lm_high:.2f}]"


def _by_cost(series: Sequence[Series]) -> list[Series]:
    return sorted(series, key=lambda one: one.final.train_flops)


def _key(one: Series) -> tuple[str, int, int]:
    """Return what tells a series from all others, those of other seeds included."""
    return one.label, one.seed, one.trial


def _named(series: Sequence[Series]) -> dict[tuple[str, int, int], str]:
    """Return how tables call each series: by its label, and its seed where a model has several."""
    seeds: dict[str, set[int]] = {}
    for one in series:
        seeds.setdefault(one.label, set()).add(one.seed)
    return {_key(one): f"{one.label}, seed {one.seed}" if len(seeds[one.label]) > 1 else one.label for one in series}


def _rows(series: Sequence[Series]) -> list[list[str]]:
    """Return the cells of `_COLUMNS`, one row per model by rising training FLOPs."""
    on_front, named = [(_key(one), point) for one, point in front_points(series)], _named(series)
    rows = []
    for one in _by_cost(series):
        final, mine = one.final, [point for key, point in on_front if key == _key(one)]
        rows.append(
            [
                named[_key(one)],
                quantity(one.parameters),
                scientific(final.train_flops),
                scientific(final.inference_flops_per_token),
                quantity(final.text_tokens),
                interval(final),
                f"{len(mine)}/{len(one.trained)}{' *' if final in mine else ''}",
            ]
        )
    return rows


def _brier_rows(series: Sequence[Series]) -> list[list[str]]:
    """Return the label and Brier-1..4 with standard errors of every model's last evaluation."""
    named = _named(series)
    return [
        [
            named[_key(one)],
            *(f"{value:.2f} ± {se:.2f}" for value, se in zip(one.final.brier, one.final.brier_se, strict=True)),
        ]
        for one in _by_cost(series)
    ]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for name in head:
        table.add_column(name, justify="left" if name == head[0] else "right", no_wrap=name in (head[0], _COLUMNS[-2]))
    for row in rows:
        table.add_row(*row, style="bold" if row[-1].endswith("*") else None)
    return table


def pareto_table(series: Sequence[Series], title: str) -> Table:
    """Return the terminal's table: the last evaluation of every model, and how much of it lies on the front.

    It fits a terminal of 80 columns.

    Args:
        series: The models.
        title: Heading.
    """
    return _table(title, _COLUMNS, _rows(series), _FRONT_NOTE)


def brier_table(series: Sequence[Series]) -> Table:
    """Return the terminal's table of Brier-1..4, the factors of BrierLM, percent with standard errors."""
    return _table("Brier-n of the last evaluation, percent ± SE", _BRIER_COLUMNS, _brier_rows(series))


def checks(series: Sequence[Series]) -> list[tuple[bool, str]]:
    """Return what can be said about whether each model learned anything: (it did, sentence) pairs.

    An untrained continuous model draws nearly the same chunk every time and scores far below zero, so rising above
    it proves little; a model counts as having learned only if its Brier-1 is also above zero by as many standard
    errors. Nothing is enforced: a model that learned nothing at this budget is a result too.
    """
    found = []
    for one in series:
        gain, final = one.learned(), one.final
        if gain is None:
            found.append((False, f"{one.label}: no untrained evaluation to compare with"))
            continue
        learned = gain > LEARNED_AT and final.brier[0] > LEARNED_AT * final.brier_se[0]
        verdict = "learned" if learned else f"did not learn measurably (both must exceed {LEARNED_AT:.0f} SE)"
        zero = final.brier[0] / final.brier_se[0] if final.brier_se[0] > 0 else math.copysign(math.inf, final.brier[0])
        found.append(
            (
                learned,
                f"{one.label} {verdict}: Brier-1 {final.brier[0]:.2f} is {gain:+.1f} SE from the untrained model's "
                f"and {zero:+.1f} SE from zero; BrierLM {interval(final)}"
                f"{' lies above zero' if final.brier_lm_low > 0 else ' does not exclude zero'}",
            )
        )
    return found


def front_numbers(series: Sequence[Series]) -> dict[str, float]:
    """Return the size of the front and its hypervolume, by metric name.

    The reference point is BrierLM 0 at the largest training cost of the sweep, so hypervolumes of one sweep's
    repetitions compare, and those of different budgets do not.
    """
    points = front_points(series)
    plane = [(point.train_flops, point.brier_lm) for _, point in points]
    worst = max((point.train_flops for one in series for point in one.trained), default=0.0)
    return {
        "sweep/front_size": float(len(points)),
        "sweep/hypervolume": hypervolume(plane, (worst, 0.0)),
        "sweep/reference_train_flops": worst,
    }


def write_points(path: Path, series: Sequence[Series]) -> None:
    """Write every evaluation of every model as CSV, FLOPs and percent in full precision."""
    on_front = {(_key(one), point.step) for one, point in front_points(series)}
    on_inference = {(_key(one), point.step) for one, point in front_points(series, inference=True)}
    numbers = ("step", "text_tokens", "train_flops", "stage_train_flops", "inference_flops_per_token", "seconds")
    scores = ("brier_lm", "brier_lm_se", "brier_lm_low", "brier_lm_high")
    brier = [f"brier_{n}" for n in range(1, 5)] + [f"brier_{n}_se" for n in range(1, 5)]
    tail = ("on_front", "on_inference_front", "trial", "seed", "state", "run_dir", "autoencoder_dir", "mlflow_run_id")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "stage", "K", "parameters", *numbers, *scores, *brier, *tail])
        for one in series:
            for point in one.points:
                key = (_key(one), point.step)
                writer.writerow(
                    [one.label, one.stage, "" if one.K is None else one.K, one.parameters]
                    + [getattr(point, name) for name in (*numbers, *scores)]
                    + [*point.brier, *point.brier_se, int(key in on_front), int(key in on_inference)]
                    + [one.trial, one.seed, one.state, one.run_dir, one.autoencoder_dir, one.mlflow_run_id or ""]
                )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table's lines."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def summary(series: Sequence[Series], budget: Budget, study: str) -> str:
    """Return the sweep as Markdown: budget, table, checks, caveats and a text sample of every model."""
    lines = [f"# {budget.title}", "", budget.line(), "", *_markdown(_COLUMNS, _rows(series)), "", _FRONT_NOTE, ""]
    lines += _markdown(_BRIER_COLUMNS, _brier_rows(series))
    numbers = front_numbers(series)
    lines += [
        "",
        f"Front: {numbers['sweep/front_size']:.0f} evaluations; hypervolume {numbers['sweep/hypervolume']:.3f} "
        f"decades x percent below {numbers['sweep/reference_train_flops']:.2e} training FLOPs.",
        "",
        "## Did the models learn?",
        "",
        *(f"- {sentence}" for _, sentence in checks(series)),
        "",
        "## What this can and cannot show",
        "",
        *(f"- {caveat}" for caveat in budget.caveats),
        "",
        "## Text samples",
    ]
    for one in series:
        lines += ["", f"**{one.label}**", "", *(f"    {line}" for line in one.text.splitlines())]
    return "\n".join([*lines, "", f"Optuna study `{study}`.", ""])
