"""A whole sweep with the tiny trainer: the files it leaves, what it prints, what it does the second time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("plotly")
pytest.importorskip("matplotlib")

from rich.console import Console
from test_sweeps_objective import TinyExecute, tiny_sweep

from calm_lightning.data.shards.manifest import Manifest
from calm_lightning.errors import DataError
from data_pipelines.prepare import prepare
from sweeps.config import SweepConfig
from sweeps.lock import only_sweep
from sweeps.reproduce import SweepResult, corpus_dir, prepare_corpus, reproduce


def run(folder: Path, *overrides: str) -> tuple[SweepResult, str]:
    source = folder / "train.jsonl"
    source.write_text("\n".join(f'{{"text": "document {number} of a small corpus"}}' for number in range(300)))

    def small_corpus(sweep: SweepConfig, out: Path) -> Manifest:
        return prepare([source], out, "bytes", val_fraction=0.2, test_fraction=0.2)

    console = Console(width=100, record=True, file=(folder / "log").open("a"))
    result = reproduce(tiny_sweep(*overrides), folder / "runs", TinyExecute(), console, small_corpus)
    return result, console.export_text()


def test_a_sweep_leaves_figures_tables_and_its_own_configuration(tmp_path: Path) -> None:
    result, text = run(tmp_path)
    assert [path.name for path in result.files] == ["front.png", "front.html", "points.csv", "summary.md"]
    assert all(path.is_file() for path in result.files)
    assert (result.directory / "sweep.yaml").is_file()
    assert result.parent_run_id is None
    assert "trial 3 of 5 · CALM K=2: language model" in text
    assert "Cannot show that K = 4 beats a Transformer" in text.replace("\n", " ")
    assert "✓ CALM K=4 learned" in text


def test_the_second_time_only_the_files_are_made_again(tmp_path: Path) -> None:
    first, _ = run(tmp_path)
    steps = (tmp_path / "runs" / "steps.log").read_text()
    first.files[0].unlink()
    second, text = run(tmp_path)
    assert second == first
    assert second.files[0].is_file()
    assert (tmp_path / "runs" / "steps.log").read_text() == steps
    assert "5 completed before" in text
    assert "trial 1 of 5" not in text


def test_other_numbers_are_another_study(tmp_path: Path) -> None:
    first, _ = run(tmp_path, "space.model.K=[2]")
    second, _ = run(tmp_path, "space.model.K=[4]")
    assert first.directory != second.directory
    assert [one.label for one in second.series] == ["baseline", "CALM K=4"]


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        reproduce(tiny_sweep(), tmp_path / "runs", TinyExecute(), Console(quiet=True), _broken)
    with only_sweep(tmp_path / "runs"):
        pass


def _broken(sweep: SweepConfig, out: Path) -> Manifest:
    raise RuntimeError("no corpus")


def test_a_corpus_of_other_settings_is_refused_in_the_words_of_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text('{"text": "To be or not to be"}\n')
    source = f"corpus.source=[{tmp_path / 'raw.jsonl'}]"
    prepare_corpus(tiny_sweep(source, "corpus.tokenizer=bytes"), tmp_path / "corpus")
    with pytest.raises(DataError, match=r"other sources or settings.*corpus\.out=OTHER, or delete it") as refusal:
        prepare_corpus(tiny_sweep(source, "corpus.tokenizer=bpe:300"), tmp_path / "corpus")
    assert "--out" not in str(refusal.value)
    assert "--force" not in str(refusal.value)


def test_the_corpus_lies_beside_the_work_directory(tmp_path: Path) -> None:
    assert corpus_dir(tiny_sweep("corpus.out=corpora/x"), tmp_path / "runs") == tmp_path / "corpora" / "x"
    assert corpus_dir(tiny_sweep("corpus.out=/elsewhere"), tmp_path) == Path("/elsewhere")
