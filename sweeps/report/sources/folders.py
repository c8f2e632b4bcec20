"""Run directories -> reported runs. Nothing is changed; what a killed run left behind is read as far as it came."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calm_lightning.errors import SweepError
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.metrics.protocol import ALIGNED
from calm_lightning.tracking.entries import JOURNAL_NAME, by_step, read_journal
from sweeps.cache.records import CONFIG, RESULT, identity_in, is_busy, read_config, read_result
from sweeps.report.sources.run import (
    AUTOENCODER,
    FAILED,
    FINISHED,
    RUNNING,
    UNFINISHED,
    ReportedRun,
    evaluations_of,
)

ENVIRONMENT, SAMPLE = "environment.txt", "sample.txt"
_OUTBOXES = "mlflow*.json"
_FACTS = ("commit", "python", "platform", "cpu", "gpu")
_FAILED = "FAILED"


def is_run(place: Path) -> bool:
    """Return whether a directory holds a run, whatever its state."""
    return any((place / name).is_file() for name in (CONFIG, RESULT, JOURNAL_NAME))


def read_folder(place: Path) -> ReportedRun:
    """Read a run directory.

    Args:
        place: The run directory.

    Raises:
        SweepError: One of its files is damaged or cannot be read.
        TrackingError: Its journal is damaged.
    """
    result, resolved = _result(place), _config(place)
    evaluations = evaluations_of(by_step(read_journal(place)))
    stage = str((result or {}).get("stage") or resolved.get("stage") or place.resolve().parent.name)
    tags, status = _outbox(place)
    facts, packages = read_environment(_text(place / ENVIRONMENT))
    found = (ScorePoint.from_metrics(step, dict(values)) for step, values in evaluations.items())
    protocol = dict((result or {}).get("protocol") or {}) or protocol_of(resolved, tags)
    below = autoencoder_of(place, resolved) if stage == "calm" else ""
    return ReportedRun(
        name=str((result or {}).get("name") or _name(place)),
        stage=stage,
        state=_state(place, result, status),
        resolved=resolved,
        evaluations=evaluations,
        points=tuple(point for point in found if point is not None),
        identity=str((result or {}).get("identity") or tags.get("calm.identity", "")),
        protocol=protocol,
        environment=environment_of(tags, facts, protocol, resolved),
        packages=packages,
        text=_text(place / SAMPLE),
        run_dir=str(place),
        autoencoder=str((protocol.get("model") or {}).get(AUTOENCODER) or tags.get("calm.autoencoder", "")),
        autoencoder_dir=below,
        mlflow_run_id=str((result or {}).get("mlflow_run_id") or ""),
        tags=tags,
        ended=_ended(place, result),
    )


def _result(place: Path) -> dict[str, Any] | None:
    """Return what a finished run says of itself, None where it has not finished.

    Raises:
        SweepError: The file is damaged.
    """
    try:
        result = read_result(place)
        if result is not None and not all(isinstance(result.get(name), dict) for name in ("metrics", "protocol")):
            raise ValueError("it lacks metrics or protocol")
    except (ValueError, OSError) as error:
        raise SweepError(
            f"{place / RESULT} cannot be read ({error}): delete it and run the run's command again"
        ) from None
    return result


def _config(place: Path) -> dict[str, Any]:
    """Return the resolved configuration, empty where there is none.

    Raises:
        SweepError: The file is damaged.
    """
    try:
        return read_config(place)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise SweepError(
            f"{place / CONFIG} cannot be read ({error}): run the run's command again to write it anew"
        ) from None


def _outbox(place: Path) -> tuple[dict[str, str], str]:
    """Return tags and status of what MLflow is told of a run, of all places in MLflow where it appears."""
    tags: dict[str, str] = {}
    status = ""
    for path in sorted(place.glob(_OUTBOXES)):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            own = {str(name): str(tag) for name, tag in value["tags"].items()}
            tags |= own | {"calm.identity": str(value["identity"])}
            status = status or str(value["status"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # it serves MLflow; a report loses nothing but what only it says
    return tags, status


def _state(place: Path, result: Mapping[str, Any] | None, status: str) -> str:
    if result is not None:
        return FINISHED
    if is_busy(place):
        return RUNNING
    return FAILED if status == _FAILED else UNFINISHED


def _ended(place: Path, result: Mapping[str, Any] | None) -> float | None:
    return None if result is None else (place / RESULT).stat().st_mtime


def _name(place: Path) -> str:
    """Return the name of a run from that of its directory."""
    name = place.resolve().name
    ending = identity_in(name)
    return name.removesuffix(f"-{ending}") if ending else name


def _text(path: Path) -> str:
    """Return a text file, "" where it is not there or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def autoencoder_of(place: Path, resolved: Mapping[str, Any]) -> str:
    """Return the run directory of the autoencoder that a run uses, where it was or beside the run; "" where in none."""
    stored = str(resolved.get("autoencoder_run") or "")
    if not stored:
        return ""
    beside = place.resolve().parents[1] / AUTOENCODER / Path(stored).name
    return next((str(path) for path in (Path(stored), beside) if is_run(path)), "")


def protocol_of(resolved: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    """Return how an unfinished run is scored, as far as its configuration and tags say."""
    try:
        data, evaluation = resolved["data"], resolved["evaluation"]
        known = {
            "name": ALIGNED,
            "block_tokens": data["block_tokens"],
            "start_stride": evaluation["start_stride"],
            "samples": evaluation["samples"],
            "split": data["eval_split"],
            "max_blocks": data["eval_max_blocks"],
            "temperature": 1.0,
        }
    except (KeyError, TypeError):
        return {}
    corpus = tags.get("corpus") or tags.get("calm.corpus")
    return known | ({"corpus": corpus} if corpus else {})


def read_environment(text: str) -> tuple[dict[str, str], str]:
    """Return the facts and the list of packages of an `environment.txt` (`calm_lightning.tracking.provenance`)."""
    head, _, packages = text.partition("\n\n")
    pairs = (line.partition(": ") for line in head.splitlines())
    return {name: value for name, _, value in pairs if name in _FACTS and value}, packages.strip()


def environment_of(
    tags: Mapping[str, str], facts: Mapping[str, str], protocol: Mapping[str, Any], resolved: Mapping[str, Any]
) -> dict[str, str]:
    """Return what a run was made with, from whatever says it."""
    found = {name.removeprefix("env."): value for name, value in tags.items() if name.startswith("env.")}
    found |= facts
    trainer = resolved.get("trainer")
    precision = protocol.get("precision") or (trainer.get("precision") if isinstance(trainer, Mapping) else "")
    scored = {"commit": protocol.get("commit"), "precision": precision, "device": protocol.get("device")}
    return found | {name: str(value) for name, value in scored.items() if value}
