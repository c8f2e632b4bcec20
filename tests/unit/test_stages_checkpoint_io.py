"""The checkpoint file is whole or untouched, whatever happens while it is written."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch

from calm_lightning.errors import CheckpointError
from calm_lightning.stages.callbacks import AtomicCheckpointIO


@pytest.fixture
def interrupt() -> Iterator[None]:
    """Turn SIGALRM into what Ctrl-C raises."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that only the collector closes
def test_ctrl_c_at_any_moment_of_a_write_is_ctrl_c_and_keeps_the_old_checkpoint(
    tmp_path: Path, interrupt: None
) -> None:
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": -1}, path)
    large = {"step": 0, **{str(i): torch.zeros(1000) for i in range(500)}}
    interrupted = 0
    for attempt in range(60):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0005 * attempt)
            io.save_checkpoint(large, path)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
        assert io.load_checkpoint(path)["step"] in (-1, 0)
    assert interrupted > 5


def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt.tmp").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be written: .*make room"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="delete it to start the run again"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (tmp_path.joinpath("ran").write_text, ("code ran",))

    torch.save({"step": Attack()}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "ran").exists()
