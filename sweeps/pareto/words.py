"""What fronts and comparisons say, in sentences a person can quote."""

from __future__ import annotations

from sweeps.front.comparison import Saving
from sweeps.front.intervals import Estimate
from sweeps.pareto.chosen import cautions
from sweeps.pareto.comparing import Comparison, Side
from sweeps.pareto.fronts import INFERENCE, Fronts

FLOPS = {"training": "training FLOPs", "inference": "inference FLOPs per token"}
_NEARLY_ALL = 0.95
_PERCENT_UP_TO = 2.0
"""Share that A costs more up to which it is said in percent."""


def plain(value: float) -> str:
    """Return a score with as many digits as it deserves: 12.3, 4.56."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percent(share: float) -> str:
    """Return a share in percent, whole."""
    return f"{100 * share:.0f}".replace("-0", "0") if abs(share) < 0.005 else f"{100 * share:.0f}"


def manifold(share: float) -> bool:
    """Return whether A costs so much more that a factor says it better than percent."""
    return share < -_PERCENT_UP_TO


def phrase(share: Estimate, flops: str, other: str) -> str:
    """Return a saving with its interval: "31 % [12, 45] fewer training FLOPs than B", or "more", or a factor."""
    if manifold(share.value):
        value, low, high = (plain(1 - one) for one in (share.value, share.high, share.low))
        return f"{value} [{low}, {high}] times as many {flops} as {other}"
    if share.value >= 0:
        return f"{percent(share.value)} % [{percent(share.low)}, {percent(share.high)}] fewer {flops} than {other}"
    return f"{percent(-share.value)} % [{percent(-share.high)}, {percent(-share.low)}] more {flops} than {other}"


def short(share: float) -> str:
    """Return a saving in figures and tables: "-31 %" for what costs less, "+12 %" for more, "x80"."""
    if manifold(share):
        return f"x{plain(1 - share)}"
    sign = "-" if share > 0 else "+"
    return f"{sign}{percent(abs(share))} %"


def headline(found: Comparison) -> str:
    """Return the mean saving over training FLOPs as a heading."""
    mean = found.training.mean
    if mean is None:
        return "no score in common"
    share = mean.share.value
    if manifold(share):
        return f"{plain(1 - share)} times the training FLOPs at equal BrierLM"
    return f"{percent(abs(share))} % {'fewer' if share >= 0 else 'more'} training FLOPs at equal BrierLM"


def undecided(share: Estimate) -> bool:
    """Return whether the interval holds 0."""
    return share.low <= 0 <= share.high


def _over(saving: Saving) -> str:
    if saving.low == saving.high:
        return f"at BrierLM {plain(saving.low)}, the one score that both fronts have"
    return f"at equal BrierLM (over BrierLM {plain(saving.low)} to {plain(saving.high)})"


def saving_sentences(found: Comparison, side: Side) -> list[str]:
    """Return what one side of a comparison says of savings."""
    a, b = found.names
    flops = FLOPS[side.kind]
    if side.mean is None:
        first = (
            f"The scores of the two fronts do not overlap over {flops} ({a} {plain(side.reach_a[0])} to "
            f"{plain(side.reach_a[1])}, {b} {plain(side.reach_b[0])} to {plain(side.reach_b[1])}), so no saving at "
            "equal BrierLM can be given."
        )
        lines = [first]
        if side.top_stepwise is not None:
            much = f"{_signed(side.top_stepwise)} {flops} {'as' if manifold(side.top_stepwise) else 'than'} {b}"
            lines.append(
                f"To score {plain(side.top)} or more, {a} needs {much}, in whole evaluations, without interval."
            )
    else:
        lines = [f"{a} needs {phrase(side.mean.share, flops, b)} {_over(side.mean)}{_doubt(side.mean)}."]
    if found.level is not None:
        lines.append(_at(found, side, found.level))
    return lines


def _at(found: Comparison, side: Side, level: float) -> str:
    a, b = found.names
    steps = "" if side.at_stepwise is None else f"; between whole evaluations {_signed(side.at_stepwise)}"
    if side.at is None:
        return f"At BrierLM {level:g} the fronts over {FLOPS[side.kind]} have no cost in common{steps}."
    return f"At BrierLM {level:g}, {a} needs {phrase(side.at.share, FLOPS[side.kind], b)}{_doubt(side.at)}{steps}."


def _signed(share: float) -> str:
    if manifold(share):
        return f"{plain(1 - share)} times as many"
    return f"{percent(abs(share))} % {'fewer' if share >= 0 else 'more'}"


def _doubt(saving: Saving) -> str:
    notes = []
    if undecided(saving.share):
        notes.append("the interval holds 0")
    if saving.covered < _NEARLY_ALL:
        notes.append(f"in {100 - 100 * saving.covered:.0f} % of redraws a front does not come there")
    return f", but {' and '.join(notes)}" if notes else ""


def volume_sentence(found: Comparison, side: Side) -> str:
    """Return the difference of hypervolumes as a sentence."""
    a, b = found.names
    gap = side.difference
    word = "larger" if gap.value >= 0 else "smaller"
    low, high = (gap.low, gap.high) if gap.value >= 0 else (-gap.high, -gap.low)
    unit = "decades of FLOPs x percent"
    doubt = ", but the interval holds 0" if undecided(gap) else ""
    size = f"{abs(gap.value):.2f} [{low:.2f}, {high:.2f}] {unit} {word}"
    return f"Over {FLOPS[side.kind]}, the hypervolume of {a} is {size} than that of {b}{doubt}."


def comparison_notes(found: Comparison) -> list[str]:
    """Return what is to be known about a comparison."""
    runs = [run for fronts in found.fronts for run in fronts.chosen.runs]
    lines = cautions(runs)
    if found.shared:
        models = "1 model is" if found.shared == 1 else f"{found.shared} models are"
        lines.append(f"{models} in both {found.names[0]} and {found.names[1]}; in redraws they move alike.")
    if found.single:
        lines.append(
            "Models with one seed: the intervals hold the errors of their evaluations, not what another seed would "
            "change."
        )
    lines.append(
        "Costs between two evaluations of a front are interpolated in log FLOPs, none are extrapolated. 95 % intervals "
        "from redraws of all scores within their errors."
    )
    return lines


def front_notes(fronts: Fronts, kind: str) -> list[str]:
    """Return what a table of the front does not show by itself."""
    front = fronts.inference if kind == INFERENCE else fronts.training
    if front is None:
        return ["No model scores above 0 yet."]
    volume = front.volume
    leaders = {model.slug for model, _ in front.standing}
    rest = len(fronts.models) - len(leaders)
    return [
        f"Hypervolume {volume.value:.2f} [{volume.low:.2f}, {volume.high:.2f}] decades of FLOPs x percent, below "
        f"{front.reference:.3g} FLOPs.".replace("e+", "e"),
        *([f"{rest} of {len(fronts.models)} models have no evaluation on the front."] if rest else []),
    ]
