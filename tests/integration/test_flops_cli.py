"""`calm flops` as a user sees it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from calm_lightning.cli.flops import flops
from calm_lightning.errors import ConfigError
from calm_lightning.flops.paper import PUBLISHED

app = typer.Typer()
app.command()(flops)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def rows(*arguments: str) -> dict[str, dict[str, Any]]:
    return {row["preset"]: row for row in json.loads(run(*arguments, "--json"))}


def test_papers_convention_is_within_five_percent_of_every_published_figure() -> None:
    found = rows("--paper")
    assert list(found) == list(PUBLISHED)
    for preset, published in PUBLISHED.items():
        row = found[preset]
        assert row["convention"] == "paper"
        assert row["parameters"] == pytest.approx(published.parameters, rel=0.01)
        assert row["training_flops"] == pytest.approx(published.training_flops, rel=0.05)
        assert row["inference_flops_per_token"] == pytest.approx(published.inference_flops_per_token, rel=0.05)


@pytest.mark.parametrize("convention", [[], ["--paper"]])
def test_components_add_up_to_the_totals(convention: list[str]) -> None:
    for row in rows("autoencoder", "calm-m", "transformer-s", *convention).values():
        for key in ("parameters", "training_flops", "inference_flops_per_token"):
            assert sum(part[key] for part in row["components"].values()) == pytest.approx(row[key])


def test_calm_pays_for_its_autoencoder() -> None:
    found = rows("autoencoder", "calm-m")
    part = found["calm-m"]["components"]["autoencoder"]
    assert part["training_flops"] == pytest.approx(found["autoencoder"]["training_flops"])


def test_calm_m_is_cheaper_than_transformer_s_in_both_conventions() -> None:
    for found in (rows(), rows("--paper")):
        calm, transformer = found["calm-m"], found["transformer-s"]
        assert 0.5 < calm["training_flops"] / transformer["training_flops"] < 0.6
        assert 0.6 < calm["inference_flops_per_token"] / transformer["inference_flops_per_token"] < 0.7


def test_tables_show_the_published_figures_and_the_difference() -> None:
    text = run("--paper")
    assert "6.64 (6.6, +0.5 %)" in text
    assert "1830 (1820, +0.5 %)" in text
    assert "131,335,168" in text
    assert "(6.6" not in run()
    assert "(3.7" not in run("calm-m", "--paper", "model.K=8"), "an altered model has no published figure"


def test_overrides_apply_to_every_preset() -> None:
    plain, halved = rows("calm-m", "transformer-s"), rows("calm-m", "transformer-s", "trainer.max_steps=125000")
    for preset in plain:
        saved = plain[preset]["training_flops"] - halved[preset]["training_flops"]
        paid = plain[preset]["components"].get("autoencoder", {"training_flops": 0})["training_flops"]
        assert saved == pytest.approx((plain[preset]["training_flops"] - paid) / 2)


def test_chunks_of_three_count_too() -> None:
    row = rows(
        "calm-m", "model.K=3", "data.block_tokens=6144", "data.batch_tokens=61440", "data.eval_batch_tokens=6144"
    )
    assert row["calm-m"]["training_flops"] > rows("calm-m")["calm-m"]["training_flops"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calm-s"], "there is no preset calm-s"),
        (["calm-m", "model.vocabulary=null"], "model.vocabulary is not set"),
        (["calm-m", "model.dd=3"], "unknown key model.dd"),
    ],
)
def test_what_cannot_be_counted_is_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(*arguments)
