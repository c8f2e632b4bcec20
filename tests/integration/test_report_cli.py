"""`calm report` as a user meets it: real tiny runs, an MLflow store, a sweep; what the page says, what is refused."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from calm_lightning.cli.main import FrontDoor
from calm_lightning.cli.report import report
from calm_lightning.config import load_config
from calm_lightning.data.texts import CorpusSplit
from calm_lightning.models import open_model
from calm_lightning.programs.evaluation import EvaluationOptions, evaluate
from calm_lightning.run import RunResult, execute
from calm_lightning.stages.watch import RunStopped, Watch
from calm_lightning.tracking.models.evaluations import store_of, write_evaluation
from calm_lightning.tracking.reading.places import open_place, place_beside

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from pareto_store import add_sweep, new_store
from synthetic_sweeps import grid
from test_sweep_report_cli import make_sweep

app = typer.Typer(cls=FrontDoor)
app.command()(report)


@app.callback()
def group() -> None:
    """With a callback the application stays a group of commands, as `calm` is."""


TINY = [
    "data.block_tokens=96",
    "data.batch_tokens=384",
    "data.eval_batch_tokens=384",
    "data.eval_max_blocks=4",
    "model={d: 16, intermediate: 32, layers: 1, heads: 2, N: 2, M: 2, noise_size: 8, K: 2, l: 16}",
    "autoencoder={d: 16, intermediate: 32}",
    "evaluation={every_steps: 4, samples: 4, text_tokens: 12}",
    "trainer={max_steps: 8, accelerator: cpu, precision: 32-true}",
    "tracking.system_metrics=false",
]


class Stopper(Watch):
    """Stops a run at its first evaluation after training began."""

    stop = False

    def evaluated(self, step: int) -> None:
        self.stop = step > 0

    def interrupted(self) -> bool:
        return self.stop


def corpus(place: Path, words: int, make_corpus: object) -> str:
    generator = random.Random(words)
    rows = [(" ".join(f"w{generator.randrange(words)}" for _ in range(80)), "") for _ in range(60)]
    make_corpus(place, {"train": rows[:40], "val": rows[40:]}, 20)  # type: ignore[operator]
    return str(place)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, make_corpus: object) -> Path:
    """A work directory: an autoencoder, a model with two seeds, baselines on two corpora, and one that was stopped."""
    folder = tmp_path_factory.mktemp("project")
    first, second = (corpus(folder / name, words, make_corpus) for name, words in (("small", 9), ("other", 50)))

    def train(stage: str, *overrides: str, watch: Watch | None = None) -> RunResult:
        given = [*TINY, f"work_dir={folder / 'runs'}", f"data.corpus={first}", *overrides]
        return execute(load_config(given, stage=stage), progress=False, watch=watch)

    below = train("autoencoder").run_dir
    for seed in (0, 1):
        train("calm", f"autoencoder_run={below}", f"seed={seed}")
    train("baseline")
    train("baseline", f"data.corpus={second}")
    with pytest.raises(RunStopped):
        train("baseline", "seed=5", "trainer.max_steps=400", watch=Stopper())
    return folder / "runs"


def calm(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *arguments], env={"COLUMNS": "80"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def page_of(path: Path) -> str:
    """The page without plotly.js, for looking for words."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"<script>.{1000000,}?</script>", "", text, count=1, flags=re.DOTALL)


def runs_in(work: Path, pattern: str) -> list[str]:
    found = sorted(str(path) for path in work.glob(pattern))
    assert found
    return found


def test_one_page_holds_what_a_colleague_asks(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    code, output = calm(
        *runs_in(work, "calm/*"), *runs_in(work, "baseline/*"), "--out", str(out), "--title", "A <title>"
    )
    assert code == 0, output
    page = page_of(out)
    assert len(page) < 2e6 < out.stat().st_size, "plotly.js is in the page, once"
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#|data:)|@import|url\(|<link", page)
    for part in (
        *("A &lt;title&gt;", "Findings", "Question", "Method", "Budget", "Learning curves", "Text samples"),
        *("What cannot be concluded", "Commands", "Environment", "text tokens", "training FLOPs", "seconds"),
        *("Not all of these runs compare with each other.", "Group 1: corpus small", "Group 2: corpus other"),
        *("unfinished after 4 of 400 steps", "calm-K2-l16-N2-d16", "autoencoder-K2-l16-d16-s0"),
        *("--- continuation", "Every installed package", "torch==", "Python"),
    ):
        assert part in page, part
    assert "Not trained to the end, and reported as they are: 1 of 6 runs." in output


def test_the_commands_on_the_page_are_those_of_the_runs(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert calm(*runs_in(work, "calm/*"), "--out", str(out))[0] == 0
    page = page_of(out)
    commands = re.findall(r"<pre>(calm train \w+ [^<]*data\.[^<]*)</pre>", page)
    assert [command.split()[2] for command in commands] == ["autoencoder", "calm", "calm"]
    assert page.count("seed=1") == 1
    assert re.search(r"autoencoder_run=runs/autoencoder/autoencoder-K2-l16-d16-s0-[0-9a-f]{10}", page)


def test_names_and_beginnings_find_runs(work: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "report.html")
    for word, heading in (
        ("calm-K2-l16-N2-d16-s1", "calm-K2-l16-N2-d16"),
        (Path(runs_in(work, "calm/*-s0-*")[0]).name, "calm-K2-l16-N2-d16"),
        ("autoencoder", "autoencoder-K2-l16-d16-s0 restores"),
    ):
        code, output = calm(word, "--work-dir", str(work), "--out", out)
        assert code == 0, output
        assert heading in output
    code, output = calm("calm-K2", "--work-dir", str(work), "--out", out)
    assert code == 2
    assert "calm-K2 may be any of 2" in output


def test_runs_in_mlflow_are_found_by_filter_name_and_id(work: Path, tmp_path: Path) -> None:
    out, moved = tmp_path / "report.html", tmp_path / "elsewhere"
    client = open_place(place_beside(work))
    (autoencoder,) = client.search_runs(["1"], "tags.stage = 'autoencoder'")
    for word in ("tags.K = '2'", "calm-K2-l16-N2-d16-s0", autoencoder.info.run_id):
        assert calm(word, "--work-dir", str(work), "--out", str(out))[0] == 0
    moved.mkdir()
    code, output = calm("tags.stage = 'calm'", "--uri", str(work.parent), "--out", str(out))
    assert code == 0, output
    from_folders = page_of(out)
    work.rename(moved / "runs")  # what follows is known to MLflow only
    try:
        code, output = calm("tags.stage = 'calm'", "--uri", str(work.parent), "--out", str(out))
        assert code == 0, output
        from_store = page_of(out)
        code, output = calm(autoencoder.info.run_id, "--uri", str(work.parent), "--out", str(out))
        assert code == 0, output
        assert "restores" in output
    finally:
        (moved / "runs").rename(work)
    table = re.compile(r"<h3>Last evaluations</h3>.*?</table>", re.DOTALL)
    assert table.search(from_store).group() == table.search(from_folders).group()  # type: ignore[union-attr]
    for part in ("--- continuation", "autoencoder-K2-l16-d16-s0", "calm train calm data.", "Every installed package"):
        assert part in from_store, part


def test_a_sweep_is_all_its_trials(work: Path, tmp_path: Path) -> None:
    series = grid()
    make_sweep(tmp_path, "some-sweep", series, done=len(series) - 3)
    out = tmp_path / "report.html"
    code, output = calm("some-sweep", *runs_in(work, "calm/*"), "--work-dir", str(tmp_path), "--out", str(out))
    assert code == 0, output
    page = page_of(out)
    for part in (
        "A synthetic sweep",
        "2 still to come",
        "the loss became NaN at step 7",
        "calm sweep run",
        "CALM K=4, N=12",
    ):
        assert part in page, part
    assert "Not all of these runs compare" not in page, "nothing says how the sweep's runs, which are gone, were scored"


def test_only_its_own_kind_of_file_is_overwritten(work: Path, tmp_path: Path) -> None:
    (run,) = runs_in(work, "autoencoder/*-s0-*")
    letter = tmp_path / "letter.html"
    letter.write_text("<html>Dear colleague</html>")
    for out, part in ((letter, "is no report of calm"), (tmp_path, "is a directory")):
        code, output = calm(run, "--out", str(out))
        assert code == 2
        assert part in output
    assert letter.read_text() == "<html>Dear colleague</html>"
    page = tmp_path / "new" / "report.html"
    for _ in range(2):
        assert calm(run, "--out", str(page))[0] == 0
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def test_mistakes_are_one_sentence(work: Path, tmp_path: Path) -> None:
    damaged, begun, journal = tmp_path / "damaged", tmp_path / "begun", tmp_path / "journal"
    for copy in (damaged, begun, journal):
        shutil.copytree(runs_in(work, "calm/*-s0-*")[0], copy)
    (damaged / "result.json").write_text("{")
    for name in ("result.json", "metrics.jsonl"):
        (begun / name).unlink()
    (journal / "metrics.jsonl").write_text("no entry\n")
    (tmp_path / "nothing").mkdir()
    out = tmp_path / "report.html"
    for arguments, part in (
        ([str(damaged)], "result.json cannot be read"),
        ([str(begun)], "is there yet: train on"),
        ([str(journal)], "line 1 is not a metrics entry"),
        ([str(tmp_path / "nothing")], "holds neither a run nor a sweep"),
        (["no-such-run", "--work-dir", str(work)], "is neither a run directory nor a sweep's"),
        (["no-such-run", "--work-dir", str(tmp_path / "none")], "there is no MLflow store"),
        (["tags.K = '17'", "--work-dir", str(work)], "no language model"),
        (["tags.K == '2'", "--work-dir", str(work)], "MLflow cannot read the filter"),
        (["calm-K2", "--uri", "http://127.0.0.1:9"], "nothing answers at http://127.0.0.1:9"),
    ):
        code, output = calm(*arguments, "--out", str(out))
        assert (code, out.exists()) == (2, False), output
        assert output.startswith("error: ")
        assert part in output


def test_evaluations_after_training_are_a_table(work: Path, tmp_path: Path) -> None:
    (place,) = runs_in(work, "calm/*-s0-*")
    opened = open_model(Path(place))
    found = evaluate(opened, CorpusSplit(opened.config.data, "val"), EvaluationOptions(samples=3))
    recorded = write_evaluation(store_of(Path(place)), found.to_dict())
    shutil.copytree(recorded.directory, recorded.directory.with_name("damaged"))
    (recorded.directory.with_name("damaged") / "evaluation.json").write_text("{}")
    try:
        out = tmp_path / "report.html"
        code, output = calm(place, "--out", str(out))
        assert code == 0, output
        assert "evaluation.json cannot be read: run its calm eval again" in output
        (row,) = re.findall(r"<tr><td[^>]*>split val of corpus.*?</tr>", page_of(out))
        assert "calm-K2-l16-N2-d16-s0" in row
        code, output = calm(str(recorded.directory), "--out", str(out))
        assert code == 2
        assert "is an evaluation: name the run of its model" in output
    finally:
        shutil.rmtree(work / "evaluation")


def test_a_sweep_in_mlflow_is_its_directory_where_that_is_at_hand(tmp_path: Path) -> None:
    store = new_store(tmp_path / "project")
    parent = add_sweep(store, "sweet-spot-sample-1a2b3c4d", [None, 4, 8])
    client, out = open_place(store), tmp_path / "report.html"
    (eight,) = client.search_runs(["1"], "tags.K = '8'")
    client.set_tag(eight.info.run_id, "state", "pruned")
    given = ["--uri", str(tmp_path / "project"), "--work-dir", str(tmp_path / "empty"), "--out", str(out)]
    code, output = calm("sweet-spot", *given)
    assert code == 0, output
    assert "Of 3 models, CALM K=4 scores highest" in output or "Of 3 models, baseline scores highest" in output
    assert "stopped early after 1600 of" in page_of(out).replace(",", "")
    series = grid()
    directory = make_sweep(tmp_path, "on-disk", series, done=len(series) - 3)
    client.set_tag(parent, "calm.sweep_dir", str(directory))
    for word in ("sweet-spot", parent):
        code, output = calm(word, *given)
        assert code == 0, output
        assert "2 still to come" in page_of(out)


def test_a_run_that_is_damaged_in_a_sweep_is_said_and_its_numbers_stay(work: Path, tmp_path: Path) -> None:
    copy = tmp_path / "calm" / "damaged"
    shutil.copytree(runs_in(work, "calm/*-s0-*")[0], copy)
    (copy / "result.json").write_text(json.dumps({"identity": "x"}))
    series = [replace(one, run_dir=str(copy)) if number == 0 else one for number, one in enumerate(grid(Ns=(8,)))]
    make_sweep(tmp_path, "some-sweep", series, done=len(series))
    out = tmp_path / "report.html"
    code, output = calm("some-sweep", "--work-dir", str(tmp_path), "--out", str(out))
    assert code == 0, output
    assert "result.json cannot be read (it lacks metrics or protocol)" in page_of(out)
