"""What MLflow shows of one training run: its outbox, at the start and once it has ended."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calm_lightning.metrics import names
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.outbox.outbox import Outbox
from calm_lightning.tracking.tags import AUTOENCODER_RUN_TAG, run_tags

ENVIRONMENT = "environment.txt"
FIGURE = "curve.png"
FILES = ("config.yaml", ENVIRONMENT, "result.json", "sample.txt", FIGURE)
"""Files of a run directory that are copied; weights go with the model."""


def run_outbox(
    resolved: Mapping[str, Any],
    params: Mapping[str, Any],
    config: TrackingConfig,
    *,
    run_dir: Path,
    identity: str,
    name: str,
    parent: str = "",
    corpus: str = "",
    autoencoder: str = "",
    datasets: Sequence[dict[str, str]] = (),
    tags: Mapping[str, str] | None = None,
) -> Outbox:
    """Return the outbox of a run that begins or goes on.

    Args:
        resolved: The resolved configuration as nested mappings.
        params: The part of it that changes the run's numbers: what the UI shows and compares by.
        config: Where runs are recorded.
        run_dir: The run directory.
        identity: The run's identity.
        name: Its readable name; the seed is added where it lacks it.
        parent: Identity of the sweep it is a part of, "" for none.
        corpus: Hash of the corpus' manifest.
        autoencoder: Identity of the autoencoder that a continuous model uses.
        datasets: What it is trained and scored on (`datasets.describe_datasets`).
        tags: Further tags.
    """
    seeded = f"-s{resolved['seed']}"
    own = run_tags(resolved, run_dir=run_dir, corpus=corpus, autoencoder_identity=autoencoder)
    return Outbox(
        identity=identity,
        name=name if name.endswith(seeded) else f"{name}{seeded}",
        uri=config.uri,
        experiment=config.experiment,
        parent=parent,
        tags=own | dict(tags or {}),
        params={**params, "data": {**params["data"], "corpus": resolved["data"]["corpus"]}},
        description=describe_run(resolved, run_dir, autoencoder),
        links={AUTOENCODER_RUN_TAG: autoencoder} if autoencoder else {},
        files=list(FILES),
        datasets=list(datasets),
        started=time.time(),
    )


def describe_run(
    resolved: Mapping[str, Any],
    run_dir: Path,
    autoencoder: str = "",
    metrics: Mapping[str, float] | None = None,
    *,
    drawn: bool = False,
) -> str:
    """Return what a run's page says, as Markdown.

    Args:
        resolved: The resolved configuration as nested mappings.
        run_dir: The run directory.
        autoencoder: Identity of the autoencoder that a continuous model uses.
        metrics: Values of its last evaluation, once it has ended.
        drawn: Whether there is a figure.
    """
    # The page shows the first lines only until it is unfolded: the answer comes first.
    lines = [_found(metrics), ""] if metrics else []
    lines += [_what(resolved, autoencoder), ""]
    if drawn:
        lines += [f"![Learning curve](artifact:{FIGURE})", ""]
    config = shlex.quote(str(run_dir / "config.yaml"))
    train = f"calm train {resolved['stage']} {config}"
    lines += [
        "Go on with it where it was stopped, and train it once more (`config.yaml` is among the artifacts, too):",
        "",
        *("```", train, f"{train} work_dir=again", "```"),
    ]
    if resolved["stage"] != "autoencoder" and metrics:
        lines += ["", "Text from it:", "", "```", f"calm generate {shlex.quote(str(run_dir))}", "```"]
    return "\n".join(lines)


def _what(resolved: Mapping[str, Any], autoencoder: str) -> str:
    """Return in a sentence what was trained."""
    model, stage = resolved["model"], resolved["stage"]
    corpus = Path(str(resolved["data"]["corpus"])).name or "its"
    steps = resolved["trainer"]["max_steps"]
    trained = f"trained for {steps:,} steps on the {corpus} corpus, seed {resolved['seed']}"
    if stage == "autoencoder":
        return f"**Autoencoder**: K = {model['K']} tokens in a latent vector of l = {model['l']}, {trained}."
    shape = f"width {model['d']}, {model['layers']} layers"
    if stage == "baseline":
        return f"**Token Transformer** (the baseline): {shape}, {trained}."
    head = f"head {model['head']} with N = {model['N']} samples and M = {model['M']} targets"
    return (
        f"**CALM**: K = {model['K']}, l = {model['l']}, {head}, {shape}, {trained}. "
        f"It reads and writes latents of [its autoencoder](run:{autoencoder})."
    )


def _found(metrics: Mapping[str, float]) -> str:
    """Return in a sentence what the last evaluation gave."""
    costs = f"{metrics[names.TRAIN_FLOPS_TOTAL]:.3g} training FLOPs"
    if names.BRIER_LM in metrics:
        score = f"{metrics[names.BRIER_LM]:.2f}"
        interval = f"[{metrics[names.BRIER_LM_LOW]:.2f}, {metrics[names.BRIER_LM_HIGH]:.2f}]"
        inference = f"{metrics[names.INFERENCE_FLOPS_PER_TOKEN]:.3g} FLOPs per generated token"
        return f"**BrierLM {score}** {interval} (95 %) after {costs}; {inference}."
    accuracy = 100 * metrics[names.VAL_ACCURACY_SAMPLED]
    return f"**{accuracy:.2f} %** of tokens restored from drawn latents after {costs}."
