"""The metrics journal: what is logged is read back, a kill costs at most a torn line, a rewind only what it must."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.entries import JournalEntry, decode, encode
from calm_lightning.tracking.journal import JOURNAL_NAME, MetricsJournal, by_step, read_journal

values = st.floats(allow_nan=True, allow_infinity=True)
entries = st.builds(
    JournalEntry, st.integers(0, 10**9), st.floats(0, 4e9), st.dictionaries(st.text(), values, max_size=5)
)


@given(entries)
def test_every_entry_survives_as_one_line_of_strict_json(entry: JournalEntry) -> None:
    line = encode(entry)
    assert line.count("\n") == 1
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = decode(line.encode())
    assert (again.step, again.time) == (entry.step, entry.time)
    assert again.metrics.keys() == entry.metrics.keys()
    for name, value in entry.metrics.items():
        assert again.metrics[name] == value or (math.isnan(value) and math.isnan(again.metrics[name]))


def test_epoch_is_dropped_and_tensors_become_numbers(tmp_path: Path) -> None:
    journal = MetricsJournal(tmp_path)
    journal.log_metrics({"train/loss": torch.tensor(2.5), "epoch": 0}, 7)
    journal.log_metrics({"epoch": 1}, 8)
    (entry,) = read_journal(tmp_path)
    assert (entry.step, entry.metrics) == (7, {"train/loss": 2.5})


def test_a_line_can_be_read_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    journal = MetricsJournal(tmp_path)
    journal.log_metrics({"a": 1.0}, 1)
    assert len(read_journal(tmp_path)) == 1


@given(st.lists(st.integers(0, 30), max_size=30), st.integers(-1, 31))
def test_rewind_keeps_exactly_the_steps_up_to_the_checkpoint(steps: list[int], checkpoint: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        journal = MetricsJournal(folder)
        for step in steps:
            journal.log_metrics({"a": float(step)}, step)
        dropped = journal.rewind(checkpoint)
        kept = [entry.step for entry in read_journal(Path(folder))]
        journal.finalize("success")
    assert kept == [step for step in steps if step <= checkpoint]
    assert dropped == len(steps) - len(kept)


@pytest.mark.parametrize("heal", ["log", "rewind"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, heal: str) -> None:
    journal = MetricsJournal(tmp_path)
    journal.log_metrics({"a": 1.0}, 1)
    journal.finalize("killed")
    with (tmp_path / JOURNAL_NAME).open("a") as file:
        file.write('{"step": 2, "time": 1')
    assert [entry.step for entry in read_journal(tmp_path)] == [1]
    resumed = MetricsJournal(tmp_path)
    if heal == "rewind":
        assert resumed.rewind(5) == 0
    resumed.log_metrics({"a": 2.0}, 2)
    assert [entry.step for entry in read_journal(tmp_path)] == [1, 2]
    assert list(tmp_path.iterdir()) == [tmp_path / JOURNAL_NAME]


def test_damage_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_text('{"step": 1, "time": 0, "metrics": {}}\nnonsense\n')
    with pytest.raises(TrackingError, match="line 2 is not a metrics entry"):
        read_journal(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    journal = MetricsJournal(tmp_path)
    journal._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")
    with pytest.raises(TrackingError, match="No space left on device; make room"):
        journal.log_metrics({"a": 1.0}, 1)


def test_metrics_of_one_step_are_merged_and_steps_sorted(tmp_path: Path) -> None:
    journal = MetricsJournal(tmp_path)
    journal.log_metrics({"a": 1.0}, 5)
    journal.log_metrics({"b": 2.0}, 5)
    journal.log_metrics({"a": 0.0}, 0)
    assert by_step(read_journal(tmp_path)) == {0: {"a": 0.0}, 5: {"a": 1.0, "b": 2.0}}
    assert read_journal(tmp_path / "nowhere") == []
