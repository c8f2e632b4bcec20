"""How often the Pareto rule stops a trial falsely, and what it saves.

    python benchmarks/bench_pruning.py            # about three minutes on one core
    python benchmarks/bench_pruning.py --json results.json

Two kinds of sweeps are replayed. Synthetic ones have curves of known truth (`sweeps.pruning.synthetic`): six families,
and a mixture of them with models that diverge, at three sizes of standard error. Recorded ones are real: models that
were trained to their end on the embedded sample, all their evaluations in `results/pruning_curves_*.json` with the
overrides that made them. Each recorded sweep is replayed in many orders.

Nothing is timed: the numbers do not depend on the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from calm_lightning.metrics.names import ScorePoint
from sweeps.front.series import Series
from sweeps.pruning.config import PruningConfig
from sweeps.pruning.evidence import VARIATIONS, Evidence, gather, sensitivity
from sweeps.pruning.replay import Trial, recorded
from sweeps.pruning.report import evidence_json, evidence_table, outcome_table, report
from sweeps.pruning.synthetic import KINDS, MIXED, sweep

RESULTS = Path(__file__).parent / "results"
NOISES = (0.05, 0.15, 0.3)
"""Standard errors of a BrierLM of 1."""
TRIALS = 20


def read_curves(path: Path) -> dict[str, tuple[Trial, ...]]:
    """Return the recorded sweeps by name."""
    document = json.loads(path.read_text())
    return {
        name: recorded([_series(document["columns"], row) for row in rows]) for name, rows in document["sweeps"].items()
    }


def _series(columns: Sequence[str], row: Mapping[str, Any]) -> Series:
    points = []
    for values in row["points"]:
        named = dict(zip(columns, values, strict=True))
        brier = {key: tuple(named.pop(f"{key}_{n}") for n in range(1, 5)) for key in ("brier", "brier_se")}
        points.append(ScorePoint(**named, **brier))
    label = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in row["values"].items())
    return Series(label, row["stage"], row["values"], 0, tuple(points), "", "", None, "", trial=row["trial"])


def synthetic(per_kind: int) -> dict[str, list[tuple[Trial, ...]]]:
    """Return synthetic sweeps by kind and noise."""
    return {
        f"{kind}, SE {noise}": [recorded(*sweep(seed, kind, TRIALS, noise)) for seed in range(per_kind)]
        for noise in NOISES
        for kind in KINDS
    }


def main() -> None:
    """Replay, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few sweeps, few orders: does it run?")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--curves", type=Path, help="recorded sweeps; default: the newest in results/")
    arguments = parser.parse_args()
    curves = arguments.curves or max(RESULTS.glob("pruning_curves_*.json"))
    per_kind, replays = (2, 4) if arguments.small else (60, 200)
    settings, console = PruningConfig(), Console(width=150)

    sweeps = synthetic(per_kind)
    rows = [(name, gather(own, settings)) for name, own in sweeps.items()]
    everything = [one for own in sweeps.values() for one in own]
    rows.append(("all synthetic", gather(everything, settings)))
    console.print(evidence_table(rows, f"Synthetic sweeps of {TRIALS} trials, {per_kind} of each kind, 4 workers"))

    mixed = [one for noise in NOISES for one in sweeps[f"{MIXED}, SE {noise}"]]
    late = [one for noise in NOISES for one in sweeps[f"late, SE {noise}"]]
    varied: list[tuple[str, Evidence]] = []
    for name, own in (("mixed", mixed), ("late", late)):
        varied.append((f"{name}: defaults", gather(own, settings)))
        varied += [(f"{name}: {key}={value}", one) for key, value, one in sensitivity(own, settings, VARIATIONS)]
    console.print(evidence_table(varied, "Synthetic sweeps, one setting changed at a time", head="setting"))
    crowds = [(f"{count} workers", gather(mixed, settings, workers=count)) for count in (1, 2, 4, 8, 16)]
    console.print(evidence_table(crowds, "Mixed sweeps by number of workers", head="workers"))

    real = {
        name: report({name: own}, settings, workers=2, replays=replays) for name, own in read_curves(curves).items()
    }
    console.print(
        evidence_table([(name, one.evidence) for name, one in real.items()], f"Real sweeps, {replays} orders")
    )
    for one in real.values():
        console.print(outcome_table(one.outcomes))
    changed = [
        (f"{name}: {key}={value}", found)
        for name, own in read_curves(curves).items()
        for key, value, found in sensitivity([own], settings, VARIATIONS, workers=2, replays=max(replays // 4, 2))
    ]
    console.print(evidence_table(changed, "Real sweeps, one setting changed at a time", head="setting"))
    if arguments.json:
        tables = {"synthetic": rows, "synthetic_sensitivity": varied, "workers": crowds, "real_sensitivity": changed}
        document: dict[str, Any] = {"settings": asdict(settings), "per_kind": per_kind, "curves": curves.name}
        document |= {name: {key: evidence_json(one) for key, one in table} for name, table in tables.items()}
        document["real"] = {name: one.to_json() for name, one in real.items()}
        arguments.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
