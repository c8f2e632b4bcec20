"""A sweep as it lies on disk and in MLflow once it has ended: no model is trained, the rest is the real thing.

Run directories with journals and outboxes are written and sent, the sweep's figures are drawn from the same
evaluations, and its own run is described as the coordinator does it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from calm_lightning.config import RunConfig, load_config
from calm_lightning.config.fingerprint import essentials
from calm_lightning.metrics import names
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.tracking.entries import JOURNAL_NAME, JournalEntry, append_entries
from calm_lightning.tracking.outbox.figure import draw_curve
from calm_lightning.tracking.outbox.outbox import FINISHED, OutboxPlace
from calm_lightning.tracking.outbox.runs import FIGURE, describe_run, run_outbox
from calm_lightning.tracking.outbox.sending import send
from sweeps import artifacts
from sweeps.config import SweepConfig
from sweeps.front.series import Series
from sweeps.recording.parent import children_of, describe, parent_outbox, study_identity
from sweeps.report.figures import draw_png
from sweeps.report.history import history
from sweeps.report.interactive import draw_html
from sweeps.report.tables import Budget, write_points

STUDY = "k4-sweet-spot-browser"
STEPS = tuple(range(0, 1001, 100))
_BEGAN = 1_795_000_000.0
_CEILINGS = {0: 15.0, 1: 6.0, 2: 9.0, 4: 11.0, 8: 6.5}
"""BrierLM after long training by K, where 0 is the baseline; only the order is true to anything."""
_TOKENS_PER_STEP = 8192
_CORPUS = hashlib.sha256(b"corpus").hexdigest()


@dataclass(frozen=True)
class SmallSweep:
    """Where the sweep is.

    Attributes:
        work_dir: The work directory; the store is `mlruns` beside it.
        series: Its models.
        run_id: MLflow run id of the sweep.
        children: MLflow run ids of its language models, in the order of `series`.
    """

    work_dir: Path
    series: tuple[Series, ...]
    run_id: str
    children: tuple[str, ...]


def make_small_sweep(root: Path, Ks: Sequence[int] = (0, 1, 2, 4, 8), seeds: Sequence[int] = (0, 1, 2)) -> SmallSweep:
    """Write a sweep below a directory and send it to the store there.

    Args:
        root: An empty directory.
        Ks: Tokens per chunk; 0 is the baseline.
        seeds: Seeds of each.
    """
    work_dir = root / "runs"
    points = [(K, seed) for K in Ks for seed in seeds]
    series = tuple(_series(work_dir, K, seed, trial) for trial, (K, seed) in enumerate(points))
    places = [_write_sweep(work_dir / "sweeps" / STUDY, series), *map(_write_run, series)]
    for place in (*places, places[0]):  # the sweep again: the runs that it names are there now
        sent = send(place)
        assert not sent.problem, sent.problem
    run_ids = [outbox.run_id or "" for place in places if (outbox := place.read()) is not None]
    return SmallSweep(work_dir, series, run_ids[0], tuple(run_ids[1:]))


def _series(work_dir: Path, K: int, seed: int, trial: int) -> Series:
    """A model whose BrierLM rises with its training FLOPs; the seed decides a little."""
    config = _config(K, seed)
    per_step, below = 2e10 * (1.0 if K == 0 else 0.4 + 1.2 / K), 0.0 if K == 0 else 2e12
    points = []
    for step in STEPS:
        noise = 0.15 * math.sin(1000 * seed + 10 * K + step)
        score = max(0.0, _CEILINGS[K] * (1 - math.exp(-step / 450)) + noise) if step else 0.0
        points.append(_point(step, below + step * per_step, below, score, 2.4e6 * (1.0 if K == 0 else 0.2 + 0.8 / K)))
    stage, slug = ("baseline", "baseline") if K == 0 else ("calm", f"K{K}-l{32 * K}-N{config.model.N}")
    shape = f"d{config.model.d}"
    name = f"baseline-{shape}-s{seed}" if K == 0 else f"calm-{slug}-{shape}-s{seed}"
    return Series(
        label="baseline" if K == 0 else f"CALM K={K}",
        stage=stage,
        values={} if K == 0 else {"model.K": K},
        parameters=3_400_000,
        points=tuple(points),
        run_dir=str(work_dir / stage / name),
        autoencoder_dir="" if K == 0 else str(work_dir / "autoencoder" / f"autoencoder-K{K}"),
        mlflow_run_id=None,
        text="A sample.",
        slug=slug,
        seed=seed,
        trial=trial,
        settings={} if K == 0 else {"model.K": K, "model.l": 32 * K, "model.N": config.model.N},
        finished=_BEGAN + 600 * (trial + 1),
    )


def _point(step: int, flops: float, below: float, score: float, inference: float) -> ScorePoint:
    brier = (4 * score, 2 * score, score, score / 2)
    return ScorePoint(
        step=step,
        train_flops=flops,
        stage_train_flops=flops - below,
        inference_flops_per_token=inference,
        text_tokens=_TOKENS_PER_STEP * step,
        seconds=0.4 * step,
        brier_lm=score,
        brier_lm_se=0.2,
        brier_lm_low=max(0.0, score - 0.4),
        brier_lm_high=score + 0.4,
        brier=brier,
        brier_se=(0.4, 0.3, 0.2, 0.1),
    )


@cache
def _config(K: int, seed: int) -> RunConfig:
    """The configuration of a model as it is once it has been resolved."""
    wanted = [f"seed={seed}", "trainer.max_steps=1000", "data.corpus=data/sample"]
    if K == 0:
        return load_config(wanted, stage="baseline")
    return load_config([*wanted, f"model.K={K}", f"model.l={32 * K}"], stage="calm")


def _write_run(one: Series) -> OutboxPlace:
    """Write the directory of one run: its journal and what MLflow shall show of it."""
    run_dir, config = Path(one.run_dir), _config(one.K or 0, one.seed)
    run_dir.mkdir(parents=True)
    began = _BEGAN + 600 * one.trial
    entries = [JournalEntry(step, began + 0.4 * step, _training(step, one)) for step in range(10, STEPS[-1] + 1, 10)]
    entries += [JournalEntry(point.step, began + 0.4 * point.step, _evaluation(point)) for point in one.points]
    append_entries(run_dir / JOURNAL_NAME, sorted(entries, key=lambda entry: entry.step))
    draw_curve(run_dir / FIGURE, run_dir.name, {}, one.points)
    (run_dir / "sample.txt").write_text(one.text)
    autoencoder = hashlib.sha256(one.slug.encode()).hexdigest() if one.autoencoder_dir else ""
    outbox = run_outbox(
        asdict(config),
        essentials(config),
        config.tracking,
        run_dir=run_dir,
        identity=hashlib.sha256(run_dir.name.encode()).hexdigest(),
        name=run_dir.name,
        parent=study_identity(STUDY),
        corpus=_CORPUS,
        autoencoder=autoencoder,
        tags={"study": STUDY, "trial": str(one.trial), "model": one.label, "slug": one.slug},
    )
    outbox.description = describe_run(asdict(config), run_dir, autoencoder, _evaluation(one.final), drawn=True)
    outbox.status, outbox.started, outbox.ended = FINISHED, began, began + 500
    place = OutboxPlace(run_dir, outbox.parent)
    place.write(outbox)
    return place


def _training(step: int, one: Series) -> dict[str, float]:
    loss = 3.0 - one.final.brier_lm / 10 * (1 - math.exp(-step / 300))
    return {names.TRAIN_LOSS: loss, names.TRAIN_LR: 3e-4, names.TRAIN_GRAD_NORM: 1.0, "train/tokens_per_second": 2e4}


def _evaluation(point: ScorePoint) -> dict[str, float]:
    values = {
        names.BRIER_LM: point.brier_lm,
        names.BRIER_LM_SE: point.brier_lm_se,
        names.BRIER_LM_LOW: point.brier_lm_low,
        names.BRIER_LM_HIGH: point.brier_lm_high,
        names.TRAIN_FLOPS: point.stage_train_flops,
        names.TRAIN_FLOPS_TOTAL: point.train_flops,
        names.TEXT_TOKENS: point.text_tokens,
        names.SECONDS: point.seconds,
        names.INFERENCE_FLOPS_PER_TOKEN: point.inference_flops_per_token,
        **dict(zip(names.BRIER_N, point.brier, strict=True)),
        **dict(zip(names.BRIER_N_SE, point.brier_se, strict=True)),
    }
    return values | ({names.LOG_TRAIN_FLOPS_TOTAL: math.log10(point.train_flops)} if point.train_flops > 0 else {})


def _write_sweep(directory: Path, series: Sequence[Series]) -> OutboxPlace:
    """Write the sweep's directory: figures, tables, journal, and what MLflow shall show of it."""
    directory.mkdir(parents=True)
    sweep = SweepConfig(name="k4-sweet-spot", title="Which K scores most per FLOP? (made-up numbers)")
    budget = Budget(
        title=sweep.title,
        corpus="sample corpus, 2.1M training tokens, V = 1,024",
        protocol="scored in blocks of 768 tokens, every 24 tokens, 8 samples",
        machine="seeds (0, 1, 2)",
        caveats=("These numbers are made up: they show pages of MLflow, no result.",),
    )
    draw_png(directory / artifacts.FIGURE, series, budget)
    draw_html(directory / artifacts.PAGE, series, budget)
    write_points(directory / artifacts.POINTS, series)
    reference = 1e14
    moments = history(series, reference)
    values = [
        JournalEntry(
            one.trials,
            one.ended or _BEGAN,
            {names.FRONT_HYPERVOLUME: one.hypervolume, names.FRONT_SIZE: float(one.size), names.FRONT_BEST: one.best},
        )
        for one in moments
    ]
    append_entries(directory / JOURNAL_NAME, values)
    outbox = replace(
        parent_outbox(sweep, directory, _CORPUS),
        status=FINISHED,
        description=describe(sweep, directory, series, budget, moments[-1], reference),
        children=children_of(series),
        started=_BEGAN,
        ended=_BEGAN + 600 * len(series),
    )
    place = OutboxPlace(directory)
    place.write(outbox)
    return place
