"""Tables, figures and pages: complete, consistent, and honest about what was learned."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from calm_lightning.errors import SweepError
from calm_lightning.metrics.names import ScorePoint
from sweeps import artifacts
from sweeps.front.series import Series, front_points
from sweeps.report import style
from sweeps.report.tables import (
    Budget,
    brier_table,
    checks,
    front_numbers,
    pareto_table,
    quantity,
    scientific,
    summary,
    write_points,
)

BUDGET = Budget("A title", "a corpus", "a protocol", "a machine", ("It cannot show <everything>.",))


def score(
    step: int, flops: float, brier_lm: float, brier_1: float, se: float = 0.5, inference: float = 1e6
) -> ScorePoint:
    return ScorePoint(
        step=step,
        train_flops=flops,
        stage_train_flops=flops,
        inference_flops_per_token=inference,
        text_tokens=1e5 * step,
        seconds=float(step),
        brier_lm=brier_lm,
        brier_lm_se=se / 2,
        brier_lm_low=max(0.0, brier_lm - se),
        brier_lm_high=brier_lm + se,
        brier=(brier_1, 1.0, 0.5, 0.25),
        brier_se=(se, se, se, se),
    )


def model(label: str, K: int | None, *points: ScorePoint) -> Series:
    stage = "baseline" if K is None else "calm"
    return Series(label, stage, {} if K is None else {"model.K": K}, 3_400_000, points, "run", "", None, "Two\nlines")


MODELS = [
    model(
        "baseline", None, score(0, 0.0, 0.0, 0.1), score(10, 2e9, 3.0, 9.0), score(20, 4e9, 6.0, 12.0, inference=3e6)
    ),
    model("CALM K=4", 4, score(0, 5e8, 0.0, -90.0), score(10, 1e9, 2.0, 5.0), score(20, 1.5e9, 2.5, 6.0)),
    model("CALM K=8", 8, score(0, 5e8, 0.0, -90.0), score(10, 7e8, 0.0, -60.0), score(20, 9e8, 0.0, -50.0)),
]


def test_front_is_made_of_all_evaluations_but_not_of_empty_ones() -> None:
    found = [(one.label, point.step) for one, point in front_points(MODELS)]
    assert found == [("CALM K=4", 10), ("CALM K=4", 20), ("baseline", 10), ("baseline", 20)]


def test_inference_front_is_made_of_last_evaluations() -> None:
    fell = model("CALM K=2", 2, score(0, 5e8, 0.0, -90.0), score(10, 1e9, 5.0, 9.0), score(20, 2e9, 1.0, 6.0))
    found = [(one.label, point.step) for one, point in front_points([*MODELS, fell], inference=True)]
    assert found == [("CALM K=4", 20), ("baseline", 20)]


def test_series_survive_json() -> None:
    for one in MODELS:
        assert Series.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_learned_is_a_gain_in_standard_errors() -> None:
    assert MODELS[0].learned() == pytest.approx((12.0 - 0.1) / math.hypot(0.5, 0.5))
    assert replace(MODELS[0], points=MODELS[0].points[1:]).learned() is None


def test_a_model_far_below_zero_has_not_learned_although_it_rose() -> None:
    verdicts = {sentence.split(" learned")[0].split(" did not")[0]: good for good, sentence in checks(MODELS)}
    assert verdicts == {"baseline": True, "CALM K=4": True, "CALM K=8": False}
    gain = MODELS[2].learned()
    assert gain is not None
    assert gain > 3


def test_tables_fit_eighty_columns_and_mark_the_front() -> None:
    console = Console(width=80, record=True, file=(Path("/dev/null").open("w")))  # noqa: SIM115
    console.print(pareto_table(MODELS, "A title"), brier_table(MODELS))
    text = console.export_text()
    assert "…" not in text
    assert "2/2 *" in text
    assert "0/2" in text
    assert "6.00 [5.50, 6.50]" in text


def test_csv_holds_every_evaluation_in_full_precision(tmp_path: Path) -> None:
    odd = replace(MODELS[0], points=(*MODELS[0].points, score(30, 1 / 3 * 1e10, 0.1 + 0.2, 1.0)))
    write_points(tmp_path / "points.csv", [odd, *MODELS[1:]])
    with (tmp_path / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert float(rows[3]["train_flops"]) == 1 / 3 * 1e10
    assert float(rows[3]["brier_lm"]) == 0.1 + 0.2
    assert [row["on_front"] for row in rows if row["model"] == "CALM K=4"] == ["0", "1", "1"]


def test_summary_says_budget_caveats_and_samples() -> None:
    text = summary(MODELS, BUDGET, "study-1")
    for part in ("# A title", "a corpus · a protocol · a machine", "It cannot show", "    Two\n    lines", "study-1"):
        assert part in text
    assert front_numbers(MODELS)["sweep/front_size"] == 4


def test_png_and_page_are_self_contained(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")
    from sweeps.report.figures import draw_png
    from sweeps.report.interactive import draw_html

    for overlay in (True, False):
        draw_png(tmp_path / "a.png", MODELS, BUDGET, overlay)
        draw_html(tmp_path / "a.html", MODELS, BUDGET, overlay)
        page = (tmp_path / "a.html").read_text()
        assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert "<script src=" not in page
        assert "It cannot show &lt;everything&gt;." in page
        assert ("CALM-XL" in page) is overlay
        assert "K = 4<br>" in page or "K = 4\\u003cbr" in page
    draw_png(tmp_path / "b.png", MODELS, BUDGET, False)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_figures_can_be_drawn_when_nothing_was_learned(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")
    from sweeps.report.figures import draw_png
    from sweeps.report.interactive import draw_html

    draw_png(tmp_path / "a.png", [MODELS[2]], BUDGET)
    draw_html(tmp_path / "a.html", [MODELS[2]], BUDGET)


def test_models_look_different() -> None:
    many = [
        model("baseline", None, *MODELS[0].points),
        *(model(f"CALM K={K}", K, *MODELS[1].points) for K in range(1, 8)),
    ]
    looks = style.looks(many)
    assert len({look.colour for look in looks.values()}) == len({look.marker for look in looks.values()}) == 8


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(SweepError, match="No space left on device"):
        artifacts.write_whole(target, fails)
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert target.read_text() == "old"


@given(st.floats(1e-3, 1e25))
def test_short_numbers_keep_three_digits(value: float) -> None:
    assert float(scientific(value)) == pytest.approx(value, rel=5.1e-3)
    factor = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    short = quantity(value)
    assert float(short.rstrip("kMBT")) * factor.get(short[-1], 1.0) == pytest.approx(value, rel=5.1e-3)
