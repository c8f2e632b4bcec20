"""What a report writes: the paper's tables, terminal, page, figures, CSV, Parquet, JSON lines."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console
from synthetic_sweeps import baseline, evaluation, grid, record, run

from calm_lightning.errors import SweepError
from sweeps.front.series import Series
from sweeps.report import published, writing
from sweeps.report.ablations import ablation_grid, ablations, regulariser_name
from sweeps.report.best import stretches_grid
from sweeps.report.exporting import evaluations_frame, trials_frame, write_frame
from sweeps.report.findings import Findings, find
from sweeps.report.front_tables import front_grid, models_grid, seeds_grid
from sweeps.report.gathering import gather
from sweeps.report.grids import Grid
from sweeps.report.palette import palette
from sweeps.report.png.axes import sheet
from sweeps.report.png.labels import Label, put_labels
from sweeps.report.seeds import models_of
from sweeps.report.terminal import show_report
from sweeps.report.words import failures, fairness, limits
from sweeps.report.writing import default_place, write_report
from sweeps.trials.reading import Failure

K, N, ALPHA, HEAD = "model.K", "model.N", "model.alpha", "model.head"
BETA, CLIP, TOKEN, LATENT = published.REGULARISERS
FAILURE = Failure(90, "CALM alpha=0.5", 0, "the loss became NaN at step 120")


def table_of(series: Sequence[Series], title: str) -> Grid:
    found = [one for one in ablations(models_of(series), {}) if one.published.title == title]
    assert len(found) == 1, title
    return ablation_grid(found[0])


def terminal(findings: Findings, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    show_report(console, findings)
    return console.export_text()


def test_table_of_N_has_the_papers_rows_costs_and_verdict() -> None:
    series = [run([score], {N: n}, flops=[cost], se=0.05) for n, score, cost in ((2, 4.0, 8e12), (8, 5.0, 1e13))]
    grid_of_n = table_of([*series, run([5.02], {N: 12}, flops=[1.2e13], se=0.05)], published.SAMPLES.title)
    assert grid_of_n.head[:2] == ("N", "paper, table 3")
    assert [row[:4] for row in grid_of_n.rows] == [
        ("2", "4.37 at 0.82x", "4.00 [3.90, 4.10]", "0.80x"),
        ("8", "4.70 at 1x", "5.00 [4.90, 5.10]", "1.00x"),
        ("12", "4.72 at 1.13x", "5.02 [4.92, 5.12]", "1.20x"),
    ]
    assert (
        "Of 3 pairs of rows that the paper orders, 2 are ordered the same way here beyond the 95 % interval, "
        "0 the other way, 1 is undecided." in grid_of_n.notes
    )


def test_rows_of_the_paper_that_are_missing_here_keep_their_place() -> None:
    rows = table_of([run([2.0], {"model.l": l}) for l in (48, 128)], published.LATENT.title).rows
    assert [row[0] for row in rows] == ["32", "48", "64", "128", "256"]
    assert [bool(row[2]) for row in rows] == [False, True, False, True, False]


def test_alpha_below_one_stands_beside_the_papers_divergence() -> None:
    rows = table_of(
        [run([score], {ALPHA: a}) for a, score in ((0.5, 0.0), (1.0, 3.0), (2.0, 0.0))], published.ALPHA.title
    )
    assert [row[:2] for row in rows.rows] == [("0.5", "diverges"), ("1", "4.70, the best"), ("2", "0.00")]
    assert "Of 2 pairs" in " ".join(rows.notes)


def test_regularisers_are_rows_by_what_is_on() -> None:
    combinations = ((0.0, 0.5, 0.0, 0.0), (1e-3, 0.0, 0.0, 0.0), (1e-3, 0.5, 0.15, 0.15), (1e-3, 0.5, 0.0, 0.0))
    series = [run([3.0 + i], dict(zip(published.REGULARISERS, one, strict=True))) for i, one in enumerate(combinations)]
    rows = table_of(series, published.REGULARISATION.title).rows
    assert [row[:2] for row in rows] == [
        ("reconstruction only", "3.99"),
        ("KL", "below 3.99"),
        ("KL + clipping + DropToken + DropLatent", "4.70"),
        ("KL + clipping", ""),
    ]
    assert regulariser_name({BETA: 0.01, CLIP: 1.0, TOKEN: 0.3}) == "KL (beta = 0.01) + clipping at 1 + DropToken 0.3"


def test_beta_alone_has_its_own_table_and_heads_are_ordered_by_the_papers_words() -> None:
    betas = [run([2.0 + i], {BETA: beta}) for i, beta in enumerate((0.0, 1e-3, 0.1))]
    assert [one.published for one in ablations(models_of(betas), {})] == [published.WEIGHT]
    heads = [run([score], {HEAD: head}) for head, score in (("energy", 6.0), ("flow", 5.0), ("diffusion", 4.0))]
    notes = " ".join(table_of(heads, published.HEADS.title).notes)
    assert "Of 3 pairs of rows that the paper orders, 3 are ordered the same way" in notes


def test_table_of_K_has_the_baseline_and_says_what_follows() -> None:
    series = [run([float(k)], {K: k}, settings={"model.l": 32 * k}) for k in (1, 4)]
    found = table_of([*series, baseline([9.0])], published.CHUNK.title)
    assert found.rows[-1][0] == "Transformer"
    assert "Not equal, because it follows: l." in found.notes


def test_published_numbers_are_those_of_the_paper() -> None:
    numbers = {
        (table.source, row.name): (row.brier_lm, row.cost)
        for table in published.TABLES
        for row in table.rows
        if row.brier_lm is not None
    }
    assert numbers == {
        ("table 3", "2"): (4.37, 0.82),
        ("table 3", "8"): (4.70, 1.0),
        ("table 3", "12"): (4.72, 1.13),
        ("table 4", "1"): (4.70, None),
        ("table 4", "2"): (0.0, None),
        ("table 2", "reconstruction only"): (3.99, None),
        ("table 2", "KL + clipping + DropToken + DropLatent"): (4.70, None),
        ("table 5", "discrete"): (4.70, None),
        ("table 5", "latent"): (3.25, None),
        ("table 5", "both"): (4.40, None),
    }


def test_terminal_fits_eighty_columns_whatever_the_names() -> None:
    long = {K: 4, "model.l": 128, "optim.lr": 0.00031622776601683794, "autoencoder.drop_token": 0.15, HEAD: "diffusion"}
    series = [*grid(seeds=(0, 1)), *(run([1.0 + 0.1 * n], {**long, N: n}) for n in (2, 8))]
    findings = find(gather([record(series, failures=[FAILURE], unfinished=2)]), importance=False)
    text = terminal(findings)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for part in ("the loss became NaN", "2 trials are missing", published.NOT_COMPARABLE[:40], "hypervolume"):
        assert part in text
    for table in (models_grid(findings), stretches_grid(findings), front_grid(findings)):
        console = Console(width=100, file=io.StringIO(), record=True)
        console.print(table.to_terminal())
        assert "…" not in console.export_text()


def test_front_table_numbers_the_front_and_counts_what_it_leaves_out() -> None:
    findings = find(gather([record(grid())]), importance=False)
    table = front_grid(findings, most_others=2)
    numbers = [row[0] for row in table.rows]
    assert numbers == [*map(str, range(1, len(findings.leaders) + 1)), "", ""]
    left = len(findings.models) - len(numbers)
    assert f"{left} more models are not listed here." in table.notes
    assert seeds_grid(findings) is None


def test_parquet_csv_and_lines_hold_the_same_evaluations(tmp_path: Path) -> None:
    odd = replace(baseline(), points=(*baseline().points, evaluation(40, 1 / 3 * 1e16, 0.1 + 0.2)))
    frame = evaluations_frame(gather([record([odd, *grid(with_baseline=False)])]))
    for ending in (".csv", ".parquet", ".jsonl"):
        write_frame(frame, tmp_path / f"all{ending}")
    parquet = pd.read_parquet(tmp_path / "all.parquet")
    pd.testing.assert_frame_equal(parquet, frame)
    csv = pd.read_csv(tmp_path / "all.csv")
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    for name in ("train_flops", "brier_lm", "brier_3_se"):
        assert list(parquet[name]) == list(csv[name]) == [line[name] for line in lines]
    assert lines[4]["brier_lm"] == 0.1 + 0.2
    assert lines[0][K] is None
    assert parquet[K].dtype == "Int64"
    assert set(csv["state"]) == {"complete", "pruned"}
    assert len(frame) == sum(len(one.points) for one in [odd, *grid(with_baseline=False)])


def test_trials_have_one_row_each_with_reasons(tmp_path: Path) -> None:
    series = grid()
    frame = trials_frame(gather([record(series, failures=[FAILURE])]))
    assert len(frame) == len(series) + 1
    failed = frame[frame["state"] == "failed"]
    assert list(failed["reason"]) == [FAILURE.reason]
    assert failed["brier_lm"].isna().all()
    write_frame(frame, tmp_path / "trials.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "trials.parquet"), frame)
    with pytest.raises(SweepError, match=r"must end in one of \.csv, \.parquet, \.jsonl"):
        write_frame(frame, tmp_path / "trials.xlsx")


def test_columns_of_mixed_kinds_are_text_and_of_mixed_numbers_are_numbers() -> None:
    series = [run([1.0], {"optim.lr": value, "model.noise": noise}) for value, noise in ((1, [1, 2]), (0.5, "uniform"))]
    frame = evaluations_frame(gather([record(series)]))
    assert list(frame["optim.lr"]) == [1.0, 1.0, 0.5, 0.5]
    assert list(frame["model.noise"]) == ["[1, 2]", "[1, 2]", "uniform", "uniform"]


DEGENERATE = {
    "one trial": [run([2.0], {K: 4})],
    "all zero": [run([0.0, 0.0], {K: k}) for k in (1, 2)],
    "baseline only": [baseline()],
    "one evaluation each": [run([1.0], {K: k}, flops=[1e13]) for k in (1, 2)],
    "all pruned": [run([1.0], {K: k}, state="pruned") for k in (1, 2)],
    "exact and equal": [run([3.0, 3.0], {K: k}, se=0.0) for k in (1, 2)],
    "many values": [run([1.0 + 0.1 * i], {"optim.lr": 10 ** (-4 + i / 10)}) for i in range(15)],
    "untrained beside trained": [run([2.0], {K: 4}), replace(run([], {K: 8}), state="pruned")],
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_every_file_is_made_of_degenerate_sweeps(name: str, tmp_path: Path) -> None:
    findings = find(gather([record(DEGENERATE[name])]))
    files = write_report(findings, tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(path.name for path in files)
    assert max(map(len, terminal(findings).splitlines())) <= 80
    for path in files:
        if path.suffix == ".png":
            assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_page_needs_no_network_and_holds_what_a_colleague_asks(tmp_path: Path) -> None:
    series = [*grid(seeds=(0, 1)), run([1.0], {K: 4, N: 99}, settings={"model.l": 128})]
    caveat = "It cannot show <everything>."
    sweep = record(series, failures=[FAILURE], unfinished=1, caveats=[caveat], derived={"model": {"l": "32 * model.K"}})
    write_report(find(gather([sweep])), tmp_path, tmp_path)
    page = (tmp_path / "report.html").read_text()
    library = get_plotlyjs()
    assert page.count(library) == 1
    rest = page.replace(library, "")
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#|data:)|@import|url\(|<link|https?:", rest)
    for part in (
        "Question",
        "Fairness",
        "What cannot be concluded",
        "It cannot show &lt;everything&gt;.",
        "calm sweep run",
    ):
        assert part in rest
    assert FAILURE.reason in rest
    assert "table 3" in rest


def test_figures_are_the_same_bytes_for_the_same_numbers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(find(gather([record(grid(Ks=(1, 4), Ns=(8,)))])), tmp_path / name)
    for figure in writing.FIGURES:
        assert (tmp_path / "a" / figure).read_bytes() == (tmp_path / "b" / figure).read_bytes()


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = find(gather([record(DEGENERATE["one trial"])]))
    write_report(findings, tmp_path / "report")
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}

    def full(path: Path, findings: Findings, line: str) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(writing.FIGURES, "parallel.png", full)
    with pytest.raises(SweepError, match="No space left on device"):
        write_report(find(gather([record(DEGENERATE["baseline only"])])), tmp_path / "report")
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_several_sweeps_are_told_apart_and_need_a_place(tmp_path: Path) -> None:
    a, b = record(grid(Ns=(8,)), tmp_path / "a"), record(grid(Ns=(8,)), tmp_path / "b")
    gathered = gather([a, b])
    assert {model.label[:3] for model in gathered.models} == {"A: ", "B: "}
    assert len(gathered.models) == 2 * len(gather([a]).models)
    assert set(evaluations_frame(gathered)["sweep"]) == {"a", "b"}
    assert len(gathered.legend()) == 2
    with pytest.raises(SweepError, match="add --out DIRECTORY"):
        default_place([a.directory, b.directory])
    assert default_place([a.directory]) == tmp_path / "a" / "report"


def test_words_say_what_is_shared_missing_and_stopped() -> None:
    findings = find(gather([record(grid(seeds=(0, 1)), unfinished=1, autoencoder_seed=0)]), importance=False)
    assert any("All seeds share one autoencoder" in line for line in fairness(findings))
    assert any(line.startswith("1 trial is missing") for line in limits(findings))
    assert [row[3] for row in failures(findings.gathered)] == ["stopped early: it lies under the front"] * 2
    swept = find(gather([record([run([1.0], {"data.batch_tokens": b}) for b in (512, 1024)])]), importance=False)
    assert any("these keys differ: data.batch_tokens" in line for line in fairness(swept))


def test_names_cover_neither_each_other_nor_points() -> None:
    figure, _ = sheet("t", "l", 6, 4)
    axes = figure.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    points = [(5.0, 5.0), (5.3, 5.0), (5.0, 5.4)]
    missing = put_labels(axes, [Label(f"name {i}", *point, "#000000") for i, point in enumerate(points)], points)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) + len(missing) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_colours_go_by_K_else_by_a_key_with_few_values() -> None:
    models = models_of(grid())
    assert palette(models, []).key == K
    heads = models_of([run([1.0], {HEAD: head}) for head in ("energy", "flow")])
    assert {palette(heads, []).name(model) for model in heads} == {"head = energy", "head = flow"}
    assert palette(models_of([run([1.0], {K: 4})]), []).name(models_of([run([1.0], {K: 4})])[0]) == "CALM"
