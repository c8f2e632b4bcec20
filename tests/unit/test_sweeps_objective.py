"""One trial, with a small real trainer in place of the large one; other tests of the sweep use the trainer too.

`TinyExecute` does what the platform's own does as far as a sweep can see: it names a run directory by the
configuration, logs to a journal, saves its place after every step, continues from there, and returns at once when it
has finished. What it "trains" is a formula.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from calm_lightning.config import RunConfig, identity
from calm_lightning.errors import SweepError
from calm_lightning.metrics import names
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.tracking.entries import JournalEntry, by_step, encode, read_journal
from sweeps.config import SweepConfig, find_sweep, load_sweep
from sweeps.space.points import points
from sweeps.work.objective import Objective

STEPS = 6


@dataclass(frozen=True)
class TinyOutcome:
    run_dir: Path
    points: tuple[ScorePoint, ...]
    text: str
    mlflow_run_id: str | None = None


def metrics_at(config: RunConfig, step: int) -> dict[str, float]:
    """Cost and score of a formula: K divides the cost, 4 is the best K, more steps are better."""
    K = config.model.K if config.stage == "calm" else 1
    score = 10 * (1 - math.exp(-step / 3)) / (1 + abs(math.log2(K / 4)))
    flops, below = 1e9 * step / K, 5e8 if config.stage == "calm" else 0.0
    return {
        names.TRAIN_FLOPS: flops,
        names.TRAIN_FLOPS_TOTAL: flops + below,
        names.INFERENCE_FLOPS_PER_TOKEN: 1e6 / K,
        names.TEXT_TOKENS: 1e5 * step,
        names.SECONDS: float(step),
        names.BRIER_LM: score,
        names.BRIER_LM_SE: 0.1,
        names.BRIER_LM_LOW: max(0.0, score - 0.2),
        names.BRIER_LM_HIGH: score + 0.2,
        **dict.fromkeys(names.BRIER_N, 2 * score),
        **dict.fromkeys(names.BRIER_N_SE, 0.2),
    }


class TinyExecute:
    """Trains formulas; counts the steps it takes in `steps.log`, one line each.

    Args:
        seconds: Time per step.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(
        self,
        config: RunConfig,
        *,
        parent_run_id: str | None = None,
        tags: dict[str, str] | None = None,
        progress: bool = True,
    ) -> TinyOutcome:
        work = Path(config.work_dir)
        run_dir = work / config.stage / f"{config.name}-{identity(config)[:10]}"
        run_dir.mkdir(parents=True, exist_ok=True)
        if config.stage == "calm":
            assert (Path(config.autoencoder_run) / "result.json").is_file()
        first = max([entry.step for entry in read_journal(run_dir)], default=-1) + 1
        for step in range(first, STEPS + 1):
            time.sleep(self.seconds)
            with (work / "steps.log").open("a") as log:
                log.write(f"{config.stage} {config.name} {step}\n")
            with (run_dir / "metrics.jsonl").open("a") as journal:
                journal.write(encode(JournalEntry(step, float(step), metrics_at(config, step))))
        (run_dir / "result.json").write_text(json.dumps({"tags": tags, "parent": parent_run_id}))
        steps = by_step(read_journal(run_dir))
        scored = [ScorePoint.from_metrics(step, dict(values)) for step, values in steps.items()]
        return TinyOutcome(run_dir, () if config.stage == "autoencoder" else tuple(p for p in scored if p), "A sample.")


def tiny_sweep(*overrides: str) -> SweepConfig:
    return load_sweep(find_sweep("k4-sweet-spot", "sample"), ["tracking.mlflow=false", *overrides])


def test_a_trial_trains_the_autoencoder_first_and_keeps_every_evaluation(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    objective = Objective(
        TinyExecute(), vocabulary=64, parent_run_id="parent", study="s", announce=lambda *what: told.append(what)
    )
    made = points(tiny_sweep("space.model.K=[2]"), Path("x"), tmp_path)
    series = objective(made[1], 5)
    assert told == [("CALM K=2", "autoencoder"), ("CALM K=2", "language model")]
    assert [point.step for point in series.points] == list(range(STEPS + 1))
    assert series.K == 2
    assert series.parameters > 1000
    for folder in (series.run_dir, series.autoencoder_dir):
        result = json.loads((Path(folder) / "result.json").read_text())
        assert result["parent"] == "parent"
        assert result["tags"] == {"calm.study": "s", "calm.trial": "5", "calm.point": "CALM K=2"}


def test_the_baseline_has_no_autoencoder(tmp_path: Path) -> None:
    objective = Objective(TinyExecute(), vocabulary=64, parent_run_id=None, study="s", announce=lambda *what: None)
    series = objective(points(tiny_sweep(), Path("x"), tmp_path)[0], 0)
    assert (series.autoencoder_dir, series.K, series.stage) == ("", None, "baseline")


def test_a_run_without_evaluations_is_refused(tmp_path: Path) -> None:
    def blind(config: RunConfig, **_: object) -> TinyOutcome:
        return TinyOutcome(tmp_path, (), "")

    objective = Objective(blind, vocabulary=64, parent_run_id=None, study="s", announce=lambda *what: None)
    with pytest.raises(SweepError, match="baseline was never evaluated"):
        objective(points(tiny_sweep(), Path("x"), tmp_path)[0], 0)
