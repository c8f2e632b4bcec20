"""What `trainer.*` may hold: the arguments of `lightning.Trainer` that are the user's, and who decides the others.

Written out rather than read from Lightning, which takes seconds to import; a test holds the two equal.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

IN_IDENTITY = frozenset(
    {"max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"}
)
"""Passed through, and part of what a run is."""
NOT_IN_IDENTITY = frozenset({
    "accelerator", "devices", "deterministic", "benchmark", "detect_anomaly", "profiler", "default_root_dir",
    "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "inference_mode", "enable_autolog_hparams",
})  # fmt: skip
"""Passed through: where and how visibly a run trains."""
_ONE_DEVICE = "runs use one device"
_STREAM = "the stream has no end and evaluations read all of data.eval_max_blocks"
DECIDED_ELSEWHERE = {
    "logger": "see tracking.*",
    "model_registry": "see tracking.*",
    "callbacks": "the stages bring their own",
    "plugins": "the stages bring their own",
    "enable_checkpointing": "see checkpoint_steps",
    "val_check_interval": "see evaluation.every_steps",
    "check_val_every_n_epoch": "see evaluation.every_steps",
    "num_sanity_val_steps": "see evaluation.every_steps",
    "max_epochs": "see trainer.max_steps",
    "min_epochs": "see trainer.max_steps",
    "min_steps": "see trainer.max_steps",
    "max_time": "see trainer.max_steps",
    "fast_dev_run": "see trainer.max_steps",
    "limit_train_batches": _STREAM,
    "limit_val_batches": _STREAM,
    "limit_test_batches": _STREAM,
    "limit_predict_batches": _STREAM,
    "overfit_batches": _STREAM,
    "reload_dataloaders_every_n_epochs": _STREAM,
    "use_distributed_sampler": _STREAM,
    "barebones": "evaluations need the journal",
    "strategy": _ONE_DEVICE,
    "num_nodes": _ONE_DEVICE,
    "sync_batchnorm": _ONE_DEVICE,
}
"""Not the user's: these follow from other keys."""
PRECISIONS = ("auto", "bf16-mixed", "32-true")


def trainer_problems(trainer: Mapping[str, object]) -> list[str]:
    """Return what is wrong with `trainer.*`, one clause each."""
    problems = [f"trainer.{name} cannot be set: {why}" for name, why in DECIDED_ELSEWHERE.items() if name in trainer]
    known = IN_IDENTITY | NOT_IN_IDENTITY
    for name in trainer.keys() - known - DECIDED_ELSEWHERE.keys():
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean trainer.{close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
        problems.append(f"unknown key trainer.{name}; {hint}")
    for name in ("max_steps", "accumulate_grad_batches", "log_every_n_steps"):
        value = trainer.get(name, 1 if name == "log_every_n_steps" else None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"trainer.{name}={value} must be a whole number of at least 1")
    if trainer.get("precision", "auto") not in PRECISIONS:
        problems.append(f"trainer.precision={trainer['precision']} must be one of {', '.join(PRECISIONS)}")
    if trainer.get("gradient_clip_algorithm") not in (None, "norm", "value"):
        problems.append(f"trainer.gradient_clip_algorithm={trainer['gradient_clip_algorithm']} must be norm or value")
    clip = trainer.get("gradient_clip_val")
    if clip is not None and (not isinstance(clip, int | float) or isinstance(clip, bool) or not clip >= 0):
        problems.append(f"trainer.gradient_clip_val={clip} must be a number of at least 0, or null")
    devices = trainer.get("devices", 1)
    if devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1):
        problems.append(f"trainer.devices={devices} must be 1, or a list of one device: {_ONE_DEVICE}")
    return problems
