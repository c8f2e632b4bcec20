"""Evaluations that were made after training (`calm eval`), found beside the runs of the models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calm_lightning.metrics.names import BRIER_LM, BRIER_LM_HIGH, BRIER_LM_LOW
from calm_lightning.tracking.models.evaluations import STAGE, evaluation_metrics
from sweeps.report.grids import Grid
from sweeps.report.sources.run import ReportedRun

DOCUMENT = "evaluation.json"


@dataclass(frozen=True)
class LaterEvaluation:
    """A score of a finished model.

    Attributes:
        run: The model's run.
        protocol: How it was scored.
        metrics: Its numbers, by the names under which training logs them.
    """

    run: ReportedRun
    protocol: Mapping[str, Any]
    metrics: Mapping[str, float]


def find_evaluations(runs: Sequence[ReportedRun]) -> tuple[list[LaterEvaluation], list[str]]:
    """Return the evaluations of language models that lie beside their run directories, and what could not be read.

    Args:
        runs: The language models.
    """
    wanted = {run.identity: run for run in runs if run.identity and run.run_dir}
    work_dirs = dict.fromkeys(Path(run.run_dir).resolve().parents[1] for run in wanted.values())
    found, remarks = [], []
    for path in (path for work_dir in work_dirs for path in sorted((work_dir / STAGE).glob(f"*/{DOCUMENT}"))):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            protocol, metrics = dict(document["protocol"]), evaluation_metrics(document)
            run = wanted.get(protocol["model"]["model"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            remarks.append(f"{path} cannot be read: run its calm eval again to have it on this page.")
            continue
        if run is not None and BRIER_LM in metrics:
            found.append(LaterEvaluation(run, protocol, metrics))
    return found, remarks


def evaluations_grid(found: Sequence[LaterEvaluation]) -> Grid:
    """Return evaluations as a table, those that were scored alike beside each other."""
    rows = sorted((*_protocol(one.protocol), one.run.name, _score(one.metrics)) for one in found)
    head = ("scored on", "protocol", "block", "starts every", "S", "blocks", "model", "BrierLM [95 %]")
    notes = ("Made with calm eval. Scores compare where everything but the model is the same.",)
    return Grid("Evaluations after training", head, tuple(rows), notes, wraps=frozenset({0, 6}))


def _protocol(protocol: Mapping[str, Any]) -> tuple[str, ...]:
    text = str(protocol.get("corpus", ""))[:8]
    place = f"split {protocol['split']} of corpus {text}" if protocol.get("split") else f"text {text}"
    names = ("name", "block_tokens", "start_stride", "samples", "blocks")
    return place, *(str(protocol.get(name) if protocol.get(name) is not None else "-") for name in names)


def _score(metrics: Mapping[str, float]) -> str:
    ends = [metrics.get(name) for name in (BRIER_LM_LOW, BRIER_LM_HIGH)]
    interval = f" [{ends[0]:.2f}, {ends[1]:.2f}]" if None not in ends else ""
    return f"{metrics[BRIER_LM]:.2f}{interval}"
