"""What `calm pareto` says: labels that tell models apart, sentences, and what they must not claim."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from calm_lightning.errors import SweepError
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.tracking.reading.selection import TrackedRun
from sweeps.front.intervals import Estimate
from sweeps.pareto.chosen import cautions, choose, link
from sweeps.pareto.comparing import Comparison, compare
from sweeps.pareto.fronts import fronts_of
from sweeps.pareto.tables import comparison_grid, front_grids
from sweeps.pareto.words import comparison_notes, percent, phrase, saving_sentences, short, volume_sentence


def points(scores: tuple[float, ...], scale: float = 1.0, se: float = 0.05) -> tuple[ScorePoint, ...]:
    return tuple(
        ScorePoint(
            step=100 * number,
            train_flops=scale * 1e12 * 2**number,
            stage_train_flops=scale * 1e12 * 2**number,
            inference_flops_per_token=scale * 1e6,
            text_tokens=1e4 * number,
            seconds=float(number),
            brier_lm=value,
            brier_lm_se=se,
            brier_lm_low=value - 2 * se,
            brier_lm_high=value + 2 * se,
            brier=(value,) * 4,
            brier_se=(se,) * 4,
        )
        for number, value in enumerate(scores)
    )


@cache
def run(
    run_id: str,
    scores: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0),
    *,
    K: int = 4,
    study: str = "",
    seed: int = 0,
    lr: float = 0.001,
    scale: float = 1.0,
    name: str = "",
) -> TrackedRun:
    tags = {"stage": "calm", "K": str(K)}
    if study:
        tags |= {"study": study, "slug": f"K{K}", "model": f"CALM K={K}", "state": "complete"}
    return TrackedRun(
        run_id=run_id.ljust(32, "0"),
        name=name or f"calm-K{K}-s{seed}",
        experiment="calm",
        uri="sqlite:///mlflow.db",
        status="FINISHED",
        parent_run_id=None,
        tags=tags,
        params={"seed": str(seed), "model.K": str(K), "optim.lr": str(lr)},
        metrics={},
        started=0.0,
        ended=1.0,
        points=points(scores, scale),
    )


def labels(*runs: TrackedRun) -> list[str]:
    return [model.label for model in choose(runs).models]


def test_labels_are_short_where_nothing_can_be_confused() -> None:
    assert labels(run("a", study="s-1"), run("b", study="s-1", seed=1), run("c", study="s-1", K=2)) == [
        "CALM K=4",
        "CALM K=2",
    ]
    assert labels(run("a"), run("b", seed=1)) == ["calm-K4"]


def test_labels_name_the_study_or_the_run_where_they_would_be_confused() -> None:
    both = labels(run("a", study="s-1"), run("b", study="t-2", lr=0.1))
    assert both == ["CALM K=4 (s-1)", "CALM K=4 (t-2)"]
    assert labels(run("a"), run("b", lr=0.1)) == ["calm-K4 (a0000000)", "calm-K4 (b0000000)"]


def test_seeds_are_one_model_across_studies() -> None:
    chosen = choose([run("a", study="s-1"), run("b", study="t-2", seed=1)])
    assert [(model.label, len(model.runs)) for model in chosen.models] == [("CALM K=4", 2)]


def test_nothing_trained_is_said_so() -> None:
    with pytest.raises(SweepError, match="none of the 1 chosen runs was evaluated after training began"):
        choose([run("a", (0.0,))])


def test_links_lead_to_a_server_only() -> None:
    served = replace(run("a"), uri="http://127.0.0.1:5000/", experiment_id="3")
    assert link(served) == f"http://127.0.0.1:5000/#/experiments/3/runs/{served.run_id}"
    assert link(run("a")) == ""


def test_cautions() -> None:
    assert cautions([run("a"), run("b", seed=1)]) == []
    other = replace(run("c"), params={**run("c").params, "data.block_tokens": "64"})
    mine = replace(run("d"), params={**run("d").params, "data.block_tokens": "768"})
    assert cautions([other, mine]) == ["Scores were not measured alike: blocks of 64 tokens or blocks of 768 tokens."]


@pytest.mark.parametrize(
    ("share", "text", "brief"),
    [
        (Estimate(0.31, 0.12, 0.45), "31 % [12, 45] fewer FLOPs than B", "-31 %"),
        (Estimate(-0.4, -0.6, -0.2), "40 % [20, 60] more FLOPs than B", "+40 %"),
        (Estimate(-0.004, -0.2, 0.1), "0 % [-10, 20] more FLOPs than B", "+0 %"),
        (Estimate(-79.0, -91.0, -55.0), "80.0 [56.0, 92.0] times as many FLOPs as B", "x80.0"),
    ],
)
def test_savings_in_words(share: Estimate, text: str, brief: str) -> None:
    assert phrase(share, "FLOPs", "B") == text
    assert short(share.value) == brief


def test_percent_has_no_negative_zero() -> None:
    assert percent(-0.001) == "0"


def two(scale: float, **more: float) -> Comparison:
    """A at a cost of 1 and B at `scale` times that."""
    return compare(choose([run("a")]), choose([run("b", K=2, scale=scale)]), names=("CALM", "Transformer"), **more)


def test_the_sentence() -> None:
    found = two(2.0)
    [training] = saving_sentences(found, found.training)
    assert training.startswith("CALM needs 50 % [")
    assert training.endswith("fewer training FLOPs than Transformer at equal BrierLM (over BrierLM 1.00 to 3.00).")
    inference = saving_sentences(found, found.inference)  # one last evaluation each, of equal score: errors part them
    assert inference[0].startswith("The scores of the two fronts do not overlap over inference FLOPs per token")
    assert inference[1] == (
        "To score 3.00 or more, CALM needs 50 % fewer inference FLOPs per token than Transformer, in whole "
        "evaluations, without interval."
    )


def test_an_undecided_saving_says_so() -> None:
    found = two(1.001)
    [training] = saving_sentences(found, found.training)
    assert "but the interval holds 0" in training
    assert "but the interval holds 0" in volume_sentence(found, found.training)


def test_a_score_that_one_front_does_not_reach() -> None:
    found = two(2.0, level=5.0)
    assert saving_sentences(found, found.training)[1] == (
        "At BrierLM 5 the fronts over training FLOPs have no cost in common."
    )
    assert "-" in [cell for row in comparison_grid(found).rows for cell in row]


def test_notes_of_a_comparison() -> None:
    notes = comparison_notes(two(2.0))
    assert any("not what another seed would change" in note for note in notes)
    same = compare(choose([run("a")]), choose([run("a"), run("b", K=2)]))
    assert "1 model is in both A and B; in redraws they move alike." in comparison_notes(same)


def test_a_front_table_has_a_row_for_each_model_on_it() -> None:
    fronts = fronts_of(choose([run("a"), run("b", K=2, scale=5.0), run("c", (0.0, 1.0, 2.5, 3.5), K=8, scale=2.0)]))
    training, inference = front_grids(fronts)
    assert [row[1] for row in training.rows] == ["calm-K4", "calm-K8"]
    assert [row[1] for row in inference.rows] == ["calm-K4", "calm-K8"]
    assert training.rows[0][-1] == "a0000000"
    assert "1 of 3 models have no evaluation on the front." in training.notes
