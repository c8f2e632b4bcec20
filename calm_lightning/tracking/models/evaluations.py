"""Evaluations of finished models as MLflow runs, below the run that trained the model.

An evaluation is a directory beside the run directories, `{work_dir}/evaluation/{name}/`, with `evaluation.json`, its
numbers as a journal of one step, and the outbox that says what MLflow shall show. So it is sent as any run is: at once,
or when the store is back (`calm runs send`). Its identity is that of the model and the protocol: the same evaluation
is the same run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calm_lightning.errors import TrackingError
from calm_lightning.metrics import names
from calm_lightning.tracking.entries import JOURNAL_NAME, JournalEntry, encode
from calm_lightning.tracking.models.datasets import describe_model
from calm_lightning.tracking.models.directory import FinishedRun, read_finished
from calm_lightning.tracking.outbox.outbox import FINISHED, Outbox, OutboxPlace
from calm_lightning.tracking.outbox.sending import send
from calm_lightning.tracking.reading.places import check_address, place_beside
from calm_lightning.tracking.store import store_dir
from calm_lightning.tracking.tags import made_with, run_tags

MODEL_RUN_TAG = "calm.model_run"
STAGE = "evaluation"
_DOCUMENT = "evaluation.json"
_NAMED = ("K", "l", "N", "M", "head", "seed")
"""Tags of the model that its evaluations have, too."""
_PROTOCOL_TAGS = ("split", "block_tokens", "start_stride", "samples", "precision")
_OF_DOMAINS = (names.BRIER_LM, names.BRIER_LM_SE, names.BRIER_LM_LOW, names.BRIER_LM_HIGH, names.SCORED_DOCUMENTS)
"""What is logged of each domain; evaluation.json has all."""
_METRIC_TAKES_NO = re.compile(r"[^\w\-. :]+", re.ASCII)


@dataclass(frozen=True)
class Recorded:
    """Where a run is recorded in MLflow.

    Attributes:
        run: The run.
        name: Its name there.
        work_dir: Its work directory, which places the embedded store.
        uri: Tracking URI, "" for the embedded store.
        experiment: Name of the experiment.
    """

    run: FinishedRun
    name: str
    work_dir: Path
    uri: str
    experiment: str


def store_of(run_dir: Path) -> Recorded:
    """Return where a run is recorded.

    Args:
        run_dir: The run directory.

    Raises:
        TrackingError: It has not finished, or was not recorded in MLflow, or its store was left behind.
    """
    run = read_finished(run_dir)
    place = OutboxPlace(run_dir)
    boxes = [one for one in map(_outbox, sorted(run_dir.glob("mlflow*.json"))) if one is not None]
    tracking = run.config.get("tracking", {})
    uri, experiment = str(tracking.get("uri", "")), str(tracking.get("experiment", "calm"))
    name = str(run.result["name"])
    if boxes:
        own = min(boxes, key=lambda box: box.parent)  # rather the run by itself than one below a sweep
        uri, experiment, name = own.uri, own.experiment, own.name
    elif run.result.get("mlflow_run_id") is None:
        raise TrackingError(
            f"{run_dir} was not recorded in MLflow: run its command again with tracking.mlflow=true to record it"
        )
    if not uri and not (store_dir(place.work_dir) / "mlflow.db").is_file() and not place.marker.exists():
        raise TrackingError(f"{run_dir} is recorded in an MLflow store that is not at {store_dir(place.work_dir)}")
    return Recorded(run, name, place.work_dir, uri, experiment)


def write_evaluation(
    recorded: Recorded,
    document: Mapping[str, Any],
    datasets: Sequence[dict[str, Any]] = (),
    command: Sequence[str] = (),
    subject: str = "",
) -> OutboxPlace:
    """Write the directory of an evaluation, ready to be sent.

    Args:
        recorded: The model that was evaluated.
        document: The evaluation, as `calm eval --json` prints it.
        datasets: What it was scored on.
        command: The command that repeats it.
        subject: What the text is called in the name: the split, or the name of a file.

    Returns:
        Where its outbox lies.

    Raises:
        OSError: The directory cannot be written.
    """
    protocol = dict(document["protocol"])
    identity = _identity(document)
    name = f"eval-{protocol['name']}-{_word(subject or protocol['split'] or 'text')}-{recorded.name}"
    place = OutboxPlace(recorded.work_dir / STAGE / f"{name}-{identity[:10]}", str(protocol["model"]["model"]))
    place.directory.mkdir(parents=True, exist_ok=True)
    ended = time.time()
    step = int(recorded.run.config["trainer"]["max_steps"])
    entry = JournalEntry(step, round(ended, 3), evaluation_metrics(document))
    _write(place.directory / _DOCUMENT, json.dumps(document, indent=2) + "\n")
    _write(place.directory / JOURNAL_NAME, encode(entry))
    place.marker.touch()
    place.write(
        Outbox(
            identity=identity,
            name=name,
            uri=recorded.uri,
            experiment=recorded.experiment,
            parent=place.parent,
            status=FINISHED,
            tags=_tags(recorded, protocol, place.directory),
            params={"protocol": {key: value for key, value in protocol.items() if key != "model"}},
            description=_describe(recorded, document, command),
            links={MODEL_RUN_TAG: place.parent},
            files=[_DOCUMENT],
            datasets=[*datasets, describe_model(place.parent)],
            started=ended - float(document["seconds"]),
            ended=ended,
        )
    )
    return place


def deliver(recorded: Recorded, place: OutboxPlace) -> str:
    """Send an evaluation, and before it what the store has not got of its model's run.

    Args:
        recorded: The model.
        place: Where the evaluation's outbox lies.

    Returns:
        Why it could not be sent, "" where it was. It is kept, and sent by `calm runs send`.
    """
    try:
        check_address(place_beside(recorded.work_dir, recorded.uri))
    except TrackingError as error:
        return str(error)
    for marker in sorted(recorded.run.directory.glob("mlflow*.unsent")):
        outbox = _outbox(marker.with_suffix(".json"))
        if outbox is not None:
            send(OutboxPlace(recorded.run.directory, outbox.parent))
    sent = send(place)
    return "another process is sending it" if sent.busy else sent.problem


def evaluation_metrics(document: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an evaluation by the names under which training logs them; what is unknown is left out.

    Args:
        document: The evaluation. A domain's numbers are called `domain/{name}/brier_lm` and so on, what MLflow allows
            in no name being replaced.
    """
    found: dict[str, float | None] = {}
    if (score := document.get("score")) is not None:
        found |= _score(score)
        for domain, part in score["domains"].items():
            prefix = f"domain/{_METRIC_TAKES_NO.sub('_', domain).strip(' ./') or '_'}/"
            scores = _score(part)
            found |= {name.replace("val/", prefix): scores[name] for name in _OF_DOMAINS}
    if (restored := document.get("reconstruction")) is not None:
        found |= {
            names.VAL_ACCURACY_MEAN: restored["accuracy_mean"],
            names.VAL_ACCURACY_SAMPLED: restored["accuracy_sampled"],
            names.VAL_CROSS_ENTROPY: restored["cross_entropy"],
            names.VAL_KL: restored["kl"],
        }
    return {name: float(value) for name, value in found.items() if value is not None}


def _score(score: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        names.BRIER_LM: score["value"],
        names.BRIER_LM_SE: score["standard_error"],
        names.BRIER_LM_LOW: score["low"],
        names.BRIER_LM_HIGH: score["high"],
        names.BRIER_LM_ZEROED: float(score["zeroed"]),
        **dict(zip(names.BRIER_N, score["brier"], strict=True)),
        **dict(zip(names.BRIER_N_SE, score["brier_standard_error"], strict=True)),
        names.SCORED_POSITIONS: score["positions"],
        names.SCORED_DOCUMENTS: score["documents"],
        names.RESAMPLED_UNITS: score["units"],
    }


def _identity(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 that names an evaluation: of the model, and of all that its protocol says."""
    value = {"evaluation": document["protocol"], "stage": document["stage"]}
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _tags(recorded: Recorded, protocol: Mapping[str, Any], directory: Path) -> dict[str, str]:
    model = run_tags(recorded.run.config, run_dir=directory)
    tags = {name: model[name] for name in _NAMED if name in model} | {"stage": STAGE, "corpus": str(protocol["corpus"])}
    tags |= {"protocol": str(protocol["name"]), "calm.run_dir": model["calm.run_dir"]}
    if autoencoder := protocol["model"].get("autoencoder"):
        tags["calm.autoencoder"] = str(autoencoder)
    return (
        tags | {name: str(protocol[name]) for name in _PROTOCOL_TAGS if protocol[name] not in (None, "")} | made_with()
    )


def _describe(recorded: Recorded, document: Mapping[str, Any], command: Sequence[str]) -> str:
    """Return what the evaluation's page says, as Markdown: the answer first."""
    protocol, score, restored = document["protocol"], document["score"], document["reconstruction"]
    text = f"split {protocol['split']} of the corpus" if protocol["split"] else "a text of its own"
    if score is not None:
        found = f"**BrierLM {score['value']:.2f}** [{score['low']:.2f}, {score['high']:.2f}] (95 %)"
    else:
        found = f"**{100 * restored['accuracy_sampled']:.2f} %** of tokens restored from drawn latents"
    how = f"{protocol['blocks']:,} blocks of {protocol['block_tokens']:,} tokens, starts: {protocol['starts']}"
    model = f"[{recorded.name}](run:{protocol['model']['model']})"
    lines = [f"{found} of {model} on {text}.", "", f"Protocol {protocol['name']}: {how}; seed {protocol['seed']}."]
    if command:
        lines += ["", "Evaluate it again:", "", "```", shlex.join(command), "```"]
    return "\n".join(lines)


def _word(text: str) -> str:
    """Return a text as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:40] or "text"


def _outbox(path: Path) -> Outbox | None:
    """Return the outbox that a file is, None where it is none."""
    try:
        return Outbox(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
