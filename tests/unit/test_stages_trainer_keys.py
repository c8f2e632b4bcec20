"""`trainer.*` is checked before anything is trained."""

from __future__ import annotations

import inspect
from pathlib import Path

import lightning.pytorch as pl
import pytest

from calm_lightning.config import load_config
from calm_lightning.errors import ConfigError
from calm_lightning.stages.trainer_keys import DECIDED_ELSEWHERE, IN_IDENTITY, NOT_IN_IDENTITY


def test_every_argument_of_the_trainer_has_an_owner() -> None:
    assert IN_IDENTITY | NOT_IN_IDENTITY | DECIDED_ELSEWHERE.keys() == inspect.signature(pl.Trainer).parameters.keys()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.foo=1", "unknown key trainer.foo"),
        ("trainer.max_step=1", "did you mean trainer.max_steps"),
        ("trainer.fast_dev_run=true", "trainer.fast_dev_run cannot be set: see trainer.max_steps"),
        ("trainer.limit_train_batches=2", "trainer.limit_train_batches cannot be set"),
        ("trainer.logger=false", "see tracking"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0 must be a whole number of at least 1"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed must be one of"),
        ("trainer.devices=2", "runs use one device"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1 must be a number of at least 0"),
        ("trainer.gradient_clip_algorithm=sign", "must be norm or value"),
        ("optim.eps=-1", "optim.eps=-1.0 must be positive"),
        ("optim.lr=nan", "optim.lr=nan must be"),
        ("model.alpha=nan", "model.alpha=nan"),
    ],
)
def test_what_cannot_work_is_refused_at_once(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([override])


def test_a_path_may_hold_an_equals_sign(tmp_path: Path) -> None:
    folder = tmp_path / "lr=1"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: {K: 2}\n")
    assert load_config([str(folder / "config.yaml"), "model.N=4"]).model.K == 2
