"""A whole sweep with the small trade: the files it leaves, what it prints, what it does the second time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("plotly")
pytest.importorskip("matplotlib")

from rich.console import Console
from tiny_trade import launch, prepare

from calm_lightning.data.shards.manifest import Manifest
from calm_lightning.errors import DataError, SweepError
from sweeps.config import SweepConfig, find_sweep, load_sweep
from sweeps.corpus import corpus_dir, prepare_corpus, vocabulary_of
from sweeps.directory import find_sweep_directory, find_sweeps
from sweeps.run import SweepResult, run_sweep

SMALL = [
    "tracking.mlflow=false",
    "all.data={block_tokens: 96, batch_tokens: 384, eval_batch_tokens: 384, eval_max_blocks: 4}",
    "all.trainer.max_steps=6",
    "all.evaluation.every_steps=2",
    "launch={beat_seconds: 0.2, dead_after_seconds: 1}",
]


def sweep_of(*overrides: str) -> SweepConfig:
    return load_sweep(find_sweep("k4-sweet-spot"), [*SMALL, *overrides])


def run(folder: Path, *overrides: str) -> tuple[SweepResult, str]:
    console = Console(width=100, record=True, file=(folder / "log").open("a"))
    result = run_sweep(sweep_of(*overrides), folder / "runs", console, prepare=prepare, launch=launch)
    return result, console.export_text()


def test_a_sweep_leaves_figures_tables_and_its_own_configuration(tmp_path: Path) -> None:
    result, text = run(tmp_path, "space.model.K=[2,4]")
    assert [path.name for path in result.files] == ["front.png", "front.html", "points.csv", "summary.md"]
    assert all(path.is_file() for path in result.files)
    directory = result.record.directory
    assert (directory / "sweep.yaml").is_file()
    assert result.parent_run_id is None
    assert "trial 1 (CALM K=2): complete" in text
    assert "Cannot show that K = 4 beats a Transformer" in text.replace("\n", " ")
    assert "✓ CALM K=4 learned" in text
    assert find_sweeps(tmp_path / "runs") == [directory]
    assert find_sweep_directory(Path("k4"), tmp_path / "runs") == directory

    steps = (tmp_path / "runs" / "steps.log").read_text()
    result.files[0].unlink()
    second, again = run(tmp_path, "space.model.K=[2,4]")
    assert second == result
    assert second.files[0].is_file()
    assert (tmp_path / "runs" / "steps.log").read_text() == steps
    assert "begun by" not in again

    third, _ = run(tmp_path, "space.model.K=[2,4]", "calm.optim.lr=0.5")
    assert third.record.directory != directory, "other numbers are another study"
    assert [one.label for one in third.record.series] == ["baseline", "CALM K=2", "CALM K=4"]
    taken = (tmp_path / "runs" / "steps.log").read_text().splitlines()
    assert len(taken) == len(set(taken)), "the baseline and the autoencoders were found"
    with pytest.raises(SweepError, match=r"k4 may be any of several sweeps; in .*: k4-sweet-spot"):
        find_sweep_directory(Path("k4"), tmp_path / "runs")


def test_trials_that_cannot_reach_the_front_are_pruned_and_their_evaluations_kept(tmp_path: Path) -> None:
    """The formula's score falls with the learning rate, so the ones with a high one lie far below the front."""
    result, text = run(
        tmp_path,
        "space={model: {K: [4]}}",
        "space.optim.lr=[0.0001, 0.0002, 0.0003, 0.9, 0.95]",
        "all.trainer.max_steps=20",
        "per_value=[]",
        "pruning={rule: pareto, min_finished: 3, min_evaluations: 2, warmup: 0.2}",
    )
    states = {one.values.get("optim.lr"): one.state for one in result.record.series}
    assert states == {
        None: "complete",
        1e-4: "complete",
        2e-4: "complete",
        3e-4: "complete",
        0.9: "pruned",
        0.95: "pruned",
    }
    pruned = [one for one in result.record.series if one.state == "pruned"]
    assert all(0 < len(one.trained) < 10 for one in pruned)
    assert all("under the front" in one.reason for one in pruned)
    assert "pruned" in text
    csv = result.files[2].read_text()
    assert all(f"CALM K=4, lr={lr}" in csv for lr in (0.9, 0.95))


@pytest.mark.parametrize("rule", ["asha", "hyperband", "median"])
def test_single_objective_sweeps_use_optunas_pruners(tmp_path: Path, rule: str) -> None:
    options = {"asha": "{min_resource: 10, reduction_factor: 2}", "hyperband": "{}", "median": "{n_startup_trials: 2}"}
    result, _ = run(
        tmp_path,
        "include_baseline=false",
        "objectives=[brier_lm]",
        "space={model: {K: [4]}}",
        "space.optim.lr=[0.0001, 0.0002, 0.001, 0.5, 0.6, 0.7, 0.8]",
        "budget={rule: flops, flops: 4.0e10, include_autoencoder: false, evaluations: 10}",
        "per_value=[]",
        f"pruning={{rule: {rule}, options: {options[rule]}}}",
    )
    states = [one.state for one in result.record.series]
    assert len(states) == 7
    assert states[0] == "complete"
    assert "pruned" in states
    best = max(result.record.series, key=lambda one: one.final.brier_lm)
    assert best.values["optim.lr"] <= 0.0002


def test_a_sweep_none_of_whose_points_may_be_trained_says_so(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="no point satisfies the constraints"):
        run(tmp_path, "include_baseline=false", "constraints=['K > 100']")


def test_the_study_is_free_after_an_error(tmp_path: Path) -> None:
    def broken(sweep: SweepConfig, out: Path) -> Manifest:
        raise RuntimeError("no corpus")

    with pytest.raises(RuntimeError):
        run_sweep(sweep_of(), tmp_path / "runs", Console(quiet=True), prepare=broken, launch=launch)
    assert not find_sweeps(tmp_path / "runs")


def test_a_corpus_of_other_settings_is_refused_in_the_words_of_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text('{"text": "To be or not to be"}\n')
    source = f"corpus.source=[{tmp_path / 'raw.jsonl'}]"
    prepare_corpus(sweep_of(source, "corpus.tokenizer=bytes"), tmp_path / "corpus")
    with pytest.raises(DataError, match=r"other sources or settings.*corpus\.out=OTHER, or delete it") as refusal:
        prepare_corpus(sweep_of(source, "corpus.tokenizer=bpe:300"), tmp_path / "corpus")
    assert "--out" not in str(refusal.value)
    assert "--force" not in str(refusal.value)
    assert vocabulary_of(sweep_of(), tmp_path / "corpus") == 257


def test_the_corpus_lies_beside_the_work_directory(tmp_path: Path) -> None:
    assert corpus_dir(sweep_of("corpus.out=corpora/x"), tmp_path / "runs") == tmp_path / "corpora" / "x"
    assert corpus_dir(sweep_of("corpus.out=/elsewhere"), tmp_path) == Path("/elsewhere")


@pytest.mark.parametrize(("tokenizer", "vocabulary"), [("bytes", 257), ("bpe:1024", 1024), ("bpe:x", None)])
def test_the_vocabulary_is_known_before_the_corpus_is_made(
    tmp_path: Path, tokenizer: str, vocabulary: int | None
) -> None:
    assert vocabulary_of(sweep_of(f"corpus.tokenizer={tokenizer}"), tmp_path / "nothing") == vocabulary
