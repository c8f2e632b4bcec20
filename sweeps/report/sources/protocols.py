"""Which runs compare: those whose scores were measured the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.report.sources.run import AUTOENCODER, ReportedRun

DECISIVE = ("corpus", "split", "tokenizer", "name", "block_tokens", "start_stride", "temperature")
"""What must be the same for scores to compare."""
MINOR = ("samples", "max_blocks", "precision", "device")
"""What moves errors, or scores by less than they err: it is said, and no reason not to compare."""
_NAMES = {
    "corpus": "corpus",
    "split": "split",
    "tokenizer": "tokenizer",
    "name": "start positions",
    "block_tokens": "tokens per block",
    "start_stride": "tokens between start positions",
    "temperature": "temperature",
    "samples": "samples per position",
    "max_blocks": "blocks scored at most",
    "precision": "precision",
    "device": "device",
}


def comparable(runs: Sequence[ReportedRun]) -> list[list[ReportedRun]]:
    """Return runs in groups within which scores compare, the largest group first.

    A run of which only a part is known (it is unfinished) goes to the first group that this part does not contradict;
    one of which nothing is known to the runs of its sweep, else to the largest group.
    """
    groups: list[tuple[dict[str, Any], list[ReportedRun]]] = []
    for run in sorted(runs, key=lambda one: -len(_decisive(one))):
        own = _decisive(run)
        home = next((group for group in groups if _agree(group[0], own)), None) if own else _home(run, groups)
        if home is None:
            groups.append((own, [run]))
        else:
            home[0].update(own)
            home[1].append(run)
    order = {id(run): number for number, run in enumerate(runs)}
    members = [sorted(group, key=lambda run: order[id(run)]) for _, group in groups]
    return sorted(members, key=lambda group: -len(group))


def _home(
    run: ReportedRun, groups: Sequence[tuple[dict[str, Any], list[ReportedRun]]]
) -> tuple[dict[str, Any], list[ReportedRun]] | None:
    """Return the group for a run of which nothing is known."""
    study = run.tags.get("study")
    same = [group for group in groups if study and any(one.tags.get("study") == study for one in group[1])]
    return max(same or groups, key=lambda group: len(group[1]), default=None)


def _decisive(run: ReportedRun) -> dict[str, Any]:
    return {name: run.protocol[name] for name in DECISIVE if name in run.protocol}


def _agree(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return all(first[name] == second[name] for name in first.keys() & second.keys())


def differences(groups: Sequence[Sequence[ReportedRun]]) -> list[str]:
    """Return names of what differs between groups, in words."""
    return [_NAMES[name] for name in DECISIVE if len({_shown(name, group) for group in groups}) > 1]


def in_words(group: Sequence[ReportedRun], groups: Sequence[Sequence[ReportedRun]]) -> str:
    """Return what sets a group apart from the others: "corpus sample-bytes (8e8b3aa9), tokens per block 384"."""
    apart = [name for name in DECISIVE if len({_shown(name, other) for other in groups}) > 1]
    if "corpus" in apart and "tokenizer" in apart:
        apart.remove("tokenizer")  # another corpus has another one, and its fingerprint says nothing to a reader
    return ", ".join(f"{_NAMES[name]} {_shown(name, group)}" for name in apart)


def _shown(name: str, group: Sequence[ReportedRun]) -> str:
    value = next((run.protocol[name] for run in group if name in run.protocol), None)
    if name == "corpus":
        return corpus_in_words(group[0])
    return str(value)[:8] if name == "tokenizer" else f"{value:,}" if isinstance(value, int) else str(value)


def corpus_in_words(run: ReportedRun) -> str:
    """Return a run's corpus: the name of its directory and the beginning of its hash."""
    name = Path(str(run.section("data").get("corpus") or "")).name
    hashed = str(run.protocol.get("corpus") or run.tags.get("corpus") or run.tags.get("calm.corpus") or "")[:8]
    return f"{name} ({hashed})" if name and hashed else name or hashed or "unknown"


def described(run: ReportedRun) -> str:
    """Return how a run was scored, in a sentence; "" where that is not known."""
    known = run.protocol
    if not {"block_tokens", "samples"} <= known.keys():
        return ""
    language_model = run.stage != AUTOENCODER
    starts = known.get("starts") or f"multiples of {known.get('start_stride')} tokens"
    blocks = known.get("blocks") or known.get("max_blocks")
    documents = f" of {known['documents']} documents" if known.get("documents") else ""
    return (
        f"Scored on the split {known.get('split')} of corpus {corpus_in_words(run)}: "
        f"{blocks} blocks of {known['block_tokens']:,} tokens{documents}, "
        + (
            f"start positions {starts}, {known['samples']} samples per position, "
            if language_model
            else "every token, "
        )
        + f"protocol {known.get('name')}."
    )


def minor_differences(runs: Sequence[ReportedRun]) -> list[str]:
    """Return what differs between runs that compare all the same, one sentence each."""
    found = []
    for name in MINOR:
        values = sorted({str(run.protocol[name]) for run in runs if run.protocol.get(name) is not None})
        if len(values) > 1:
            found.append(f"Not the same for all scores: {_NAMES[name]} ({', '.join(values)}).")
    return found
