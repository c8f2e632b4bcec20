"""How often the intervals of `calm pareto` hold the truth, and how far its estimates are off.

    python benchmarks/bench_pareto_coverage.py            # about ten minutes on one core
    python benchmarks/bench_pareto_coverage.py --json results.json

Sets A and B of models have learning curves of known truth: BrierLM over log training FLOPs, concave, for models of
different budgets and qualities; A needs less for the same score. What is observed has the errors that real evaluations
have: a part that all models share, because they are scored on the same blocks; a part of each run's own, most of which
all its evaluations share; and what seeds change. The truth of an estimate is the same formula on the curves without
errors. Of models with one seed it is what these trained models would score without the error of the evaluation, since
one seed cannot tell what another would change; the last column has the coverage where that is asked as well.

Nothing is timed: the numbers do not depend on the machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from sweeps.front.comparison import SAVING_INTERVAL, VOLUME_INTERVAL, common_range, levels_of, log_ratios
from sweeps.front.intervals import KINDS, Kind, interval
from sweeps.front.redraws import Cloud, Floats, redraw, volumes

EVALUATIONS = 8
REDRAWS = 400
SAVING = 0.4
"""What A saves, before models of different qualities make fronts of it."""
MEAN, LEVEL, LAST = "mean saving", "saving at a level", "mean saving, last evaluations"
DIFFERENCE, VOLUME, ALONE = "difference of hypervolumes", "hypervolume", "hypervolume, models drawn independently"
CHOSEN: dict[str, Kind] = {
    MEAN: SAVING_INTERVAL,
    LEVEL: SAVING_INTERVAL,
    LAST: SAVING_INTERVAL,
    DIFFERENCE: VOLUME_INTERVAL,
    VOLUME: VOLUME_INTERVAL,
    ALONE: VOLUME_INTERVAL,
}
"""The kinds that the command uses; the last one is what it would be without a common draw."""
Pair = tuple[Cloud, Cloud]
Scores = tuple[Floats, Floats]


@dataclass(frozen=True)
class Scenario:
    """One kind of experiment.

    Attributes:
        models_a: Models of A.
        models_b: Models of B.
        seeds: Seeds of every model.
        shared: Part of an evaluation's error variance that all models share.
        error: Standard error of an evaluation, relative to the score.
        spread: Standard deviation between seeds, relative to the score.
        quality: Standard deviation of the models' qualities, relative to the score.
    """

    models_a: int
    models_b: int
    seeds: int
    shared: float
    error: float
    spread: float
    quality: float

    @property
    def name(self) -> str:
        """The scenario in a few characters."""
        noise = "noisy" if self.error > 0.05 else "usual"
        return f"{self.models_a}/{self.models_b} models, {self.seeds} seed{'s' * (self.seeds > 1)}, {noise}"


@dataclass(frozen=True)
class Observed:
    """One set of models: what is measured, and what is true of it."""

    cloud: Cloud
    truth: Cloud
    truth_of_seeds: Cloud


@dataclass(frozen=True)
class Outcome:
    """What came of one number in many repetitions.

    Attributes:
        scenario: The experiment.
        quantity: Which number.
        coverage: Share of repetitions whose interval held the truth, by kind.
        width: Mean width of the intervals, by kind.
        truth: Mean of the truth.
        bias: Mean of estimate minus truth.
        deviation: Standard deviation of estimate minus truth.
        redrawn: Mean of the redraws' median minus the estimate.
        other_seeds: Coverage of the chosen kind for the truth that includes seeds.
    """

    scenario: Scenario
    quantity: str
    coverage: dict[str, float]
    width: dict[str, float]
    truth: float
    bias: float
    deviation: float
    redrawn: float
    other_seeds: float


def curves(generator: np.random.Generator, models: int, saving: float, quality: float) -> tuple[Floats, Floats]:
    """Return costs and true scores, (models, evaluations) each."""
    budgets = 10 ** generator.uniform(13.0, 14.5, (models, 1))
    costs = budgets * 2.0 ** -np.arange(EVALUATIONS - 1, -1, -1)
    decades = np.log10(costs / 1e12 / (1 - saving))
    gift = 1 + generator.normal(0, quality, (models, 1))
    return costs, 3.2 * np.maximum(decades - 0.4, 0) * (1 - 0.12 * decades) * gift


def observe(generator: np.random.Generator, name: str, saving: float, common: float, one: Scenario) -> Observed:
    """Draw a set of models and measure it."""
    models = one.models_a if name == "a" else one.models_b
    costs, expected = curves(generator, models, saving, one.quality)
    own = (
        expected[:, None]
        + one.spread * expected[:, None] * generator.standard_normal((models, one.seeds, EVALUATIONS))[..., :1]
    )
    error = np.maximum(0.03, one.error * expected)
    of_run = np.sqrt(0.8) * generator.standard_normal((models, one.seeds, 1))
    of_step = np.sqrt(0.2) * generator.standard_normal((models, one.seeds, EVALUATIONS))
    noise = np.sqrt(one.shared) * common + np.sqrt(1 - one.shared) * (of_run + of_step)
    scores = own + error[:, None] * noise
    between = scores.var(axis=1, ddof=1) / one.seeds if one.seeds > 1 else np.zeros_like(error)
    total = np.sqrt(between + error**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(between > 0, total**4 * (one.seeds - 1) / between**2, np.inf).min(axis=1)
    conditional = own.mean(axis=1) if one.seeds == 1 else expected

    def cloud(values: Floats) -> Cloud:
        order = np.argsort(costs, axis=None, kind="stable")
        order = order[values.ravel()[order] > 0]
        keys = tuple(f"{name}{number}" for number in range(models))
        parts = (costs, values, total, error)
        owner = np.repeat(np.arange(models), EVALUATIONS)[order]
        return Cloud(keys, freedom, owner, *(part.ravel()[order] for part in parts))

    return Observed(cloud(scores.mean(axis=1)), cloud(conditional), cloud(expected))


def numbers(pair: Pair, scores: Scores, level: float, reference: float) -> dict[str, Floats]:
    """Return the numbers that the command gives, (R,) each."""
    of_a, of_b = (volumes(cloud, drawn, reference) for cloud, drawn in zip(pair, scores, strict=True))
    last_a, last_b = (_last(cloud) for cloud in pair)
    lasts = _part(pair[0], last_a), _part(pair[1], last_b)
    return {
        MEAN: _mean_saving(pair, scores),
        LEVEL: log_ratios(*pair, scores, np.array([[level]])),
        LAST: _mean_saving(lasts, (scores[0][:, last_a], scores[1][:, last_b])),
        DIFFERENCE: of_a - of_b,
        VOLUME: of_a,
        ALONE: of_a,
    }


def _mean_saving(pair: Pair, scores: Scores) -> Floats:
    return log_ratios(*pair, scores, levels_of(*common_range(*pair, scores)))


def _last(cloud: Cloud) -> NDArray[np.intp]:
    """Return where the last evaluation of every model is, as the front over inference FLOPs has them."""
    return np.sort([np.flatnonzero(cloud.owner == model)[-1] for model in np.unique(cloud.owner)])


def _part(cloud: Cloud, places: NDArray[np.intp]) -> Cloud:
    columns = (cloud.cost, cloud.score, cloud.error, cloud.evaluation)
    return Cloud(cloud.keys, cloud.freedom, cloud.owner[places], *(column[places] for column in columns))


def repetition(generator: np.random.Generator, one: Scenario) -> dict[str, tuple[float, Floats, float, float]]:
    """Return estimate, redraws, truth and truth of seeds of every number, for sets drawn anew."""
    common = float(generator.standard_normal())
    a, b = observe(generator, "a", SAVING, common, one), observe(generator, "b", 0.0, common, one)
    measured = a.cloud, b.cloud
    (low,), (high,) = common_range(*measured, _scores(measured))
    level, reference = float(0.2 * low + 0.8 * high), float(max(a.cloud.cost.max(), b.cloud.cost.max()))
    estimates, truths, of_seeds = (
        numbers(pair, _scores(pair), level, reference)
        for pair in (measured, (a.truth, b.truth), (a.truth_of_seeds, b.truth_of_seeds))
    )
    drawn_a, drawn_b = redraw(measured, REDRAWS, 7)
    drawn = numbers(measured, (drawn_a, drawn_b), level, reference)
    drawn[VOLUME] = volumes(a.cloud, redraw([a.cloud], REDRAWS, 7, shared=1.0)[0], reference)
    return {
        name: (float(estimates[name][0]), drawn[name], float(truths[name][0]), float(of_seeds[name][0]))
        for name in CHOSEN
    }


def _scores(pair: Pair) -> Scores:
    return pair[0].score[None], pair[1].score[None]


def measure(one: Scenario, repetitions: int) -> list[Outcome]:
    """Repeat an experiment and count."""
    generator = np.random.default_rng(1)
    done = [repetition(generator, one) for _ in range(repetitions)]
    found = []
    for name, kind in CHOSEN.items():
        held: dict[str, list[bool]] = {each: [] for each in KINDS}
        wide: dict[str, list[float]] = {each: [] for each in KINDS}
        off, redrawn, truths, others = [], [], [], []
        for estimate, drawn, truth, of_seeds in (repeated[name] for repeated in done):
            drawn = drawn[np.isfinite(drawn)]
            if not np.isfinite([estimate, truth, of_seeds]).all() or not len(drawn):
                continue
            for each in KINDS:
                low, high = interval(estimate, drawn, each)
                held[each].append(low <= truth <= high)
                wide[each].append(high - low)
            low, high = interval(estimate, drawn, kind)
            others.append(low <= of_seeds <= high)
            off.append(estimate - truth)
            redrawn.append(float(np.median(drawn)) - estimate)
            truths.append(truth)
        found.append(
            Outcome(
                scenario=one,
                quantity=name,
                coverage={each: float(np.mean(values)) for each, values in held.items()},
                width={each: float(np.mean(values)) for each, values in wide.items()},
                truth=float(np.mean(truths)),
                bias=float(np.mean(off)),
                deviation=float(np.std(off)),
                redrawn=float(np.mean(redrawn)),
                other_seeds=float(np.mean(others)),
            )
        )
    return found


def scenarios(small: bool) -> list[Scenario]:
    """Return the experiments."""
    sizes, shares = ([(8, 8)], [0.5]) if small else ([(8, 8), (30, 30), (4, 40), (1, 10)], [0.0, 0.5, 0.9])
    noises = [(0.04, 0.03, 0.08)] if small else [(0.04, 0.03, 0.08), (0.08, 0.05, 0.03)]
    return [
        Scenario(a, b, seeds, shared, *noise) for noise, (a, b), seeds, shared in product(noises, sizes, [1, 3], shares)
    ]


def table(outcomes: list[Outcome], quantity: str) -> Table:
    """Return the results of one number."""
    unit = "decades of cost x percent" if quantity in (DIFFERENCE, VOLUME, ALONE) else "decades of cost"
    found = Table(title=f"{quantity} ({unit}); the command uses {CHOSEN[quantity]}", title_justify="left")
    heads = ("scenario", "shared", *KINDS, "width", "truth", "bias", "SD", "redraws", "other seeds")
    for head in heads:
        found.add_column(head, justify="left" if head == "scenario" else "right")
    for one in outcomes:
        if one.quantity == quantity:
            shares = [f"{100 * one.coverage[kind]:.0f} %" for kind in KINDS]
            values = (one.width[CHOSEN[quantity]], one.truth, one.bias, one.deviation, one.redrawn)
            words = [f"{value:+.3f}" for value in values]
            found.add_row(
                one.scenario.name, f"{one.scenario.shared:g}", *shares, *words, f"{100 * one.other_seeds:.0f} %"
            )
    return found


def summary(outcomes: list[Outcome]) -> Table:
    """Return lowest and mean coverage of every kind of interval."""
    found = Table(title="Coverage of 95 % intervals: lowest and mean over scenarios", title_justify="left")
    for head in ("number", *KINDS, "used"):
        found.add_column(head, justify="left" if head == "number" else "right")
    for quantity, kind in CHOSEN.items():
        mine = [one for one in outcomes if one.quantity == quantity]
        cells = []
        for each in KINDS:
            shares = [one.coverage[each] for one in mine]
            cells.append(f"{100 * min(shares):.0f} %, {100 * np.mean(shares):.0f} %")
        found.add_row(quantity, *cells, kind)
    return found


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two experiments, few repetitions: does it run?")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    repetitions, console = 10 if arguments.small else arguments.repetitions, Console(width=150)
    outcomes = [found for one in scenarios(arguments.small) for found in measure(one, repetitions)]
    for quantity in CHOSEN:
        console.print(table(outcomes, quantity))
    console.print(summary(outcomes))
    if arguments.json:
        rows = [_rounded(asdict(one)) for one in outcomes]
        document = {"repetitions": repetitions, "redraws": REDRAWS, "intervals": CHOSEN, "outcomes": rows}
        arguments.json.write_text(json.dumps(document) + "\n")


def _rounded(value: Any) -> Any:
    """Return a document with numbers of four decimals."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
