"""What the paper reports of its ablations, as data: numbers where it states them, its statement where it does not.

Source: Shao, Li, Meng, Zhou, "Continuous Autoregressive Language Models", arXiv 2510.27688; table and figure numbers
are given with each. The ablations are runs shorter than the published models' (their reference is BrierLM 4.70, not
5.72), with K = 4 unless said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BETA, KL_CLIP = "autoencoder.beta", "autoencoder.kl_clip"
DROP_TOKEN, DROP_LATENT = "autoencoder.drop_token", "autoencoder.drop_latent"
REGULARISERS = (BETA, KL_CLIP, DROP_TOKEN, DROP_LATENT)


@dataclass(frozen=True)
class Below:
    """Any value below a limit, for rows that speak of a range."""

    limit: float


@dataclass(frozen=True)
class Above:
    """Any value above a limit."""

    limit: float


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published ablation.

    Attributes:
        values: The values of the table's keys that it stands for; a key that is left out may have any value.
        name: How the row is called.
        brier_lm: BrierLM, percent; None where the paper's number is not known here.
        cost: Training FLOPs relative to the reference row; None where they are not known.
        words: What the paper says instead of a number, or beside it.
    """

    values: Mapping[str, Any]
    name: str
    brier_lm: float | None = None
    cost: float | None = None
    words: str = ""

    def matches(self, values: Mapping[str, Any]) -> bool:
        """Return whether a model with these values stands in this row."""
        return all(_same(wanted, values.get(key)) for key, wanted in self.values.items())

    def cell(self) -> str:
        """Return the paper's number and words as one cell."""
        score = "" if self.brier_lm is None else f"{self.brier_lm:.2f}"
        cost = "" if self.cost is None else f"at {self.cost:g}x"
        number = " ".join(part for part in (score, cost) if part)
        return ", ".join(part for part in (number, self.words) if part)


def _same(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, Below):
        return isinstance(value, (int, float)) and value < wanted.limit
    if isinstance(wanted, Above):
        return isinstance(value, (int, float)) and value > wanted.limit
    if isinstance(wanted, float) and isinstance(value, (int, float)):
        return abs(wanted - value) <= 1e-9 * max(1.0, abs(wanted))
    return bool(wanted == value)


@dataclass(frozen=True)
class PublishedTable:
    """One published ablation.

    Attributes:
        title: What is varied.
        source: Table or figure of the paper.
        keys: The settings that are varied.
        rows: Its rows.
        reference: Name of the row that costs are relative to, "" where there is none.
        orders: (worse, better) names of rows that the paper orders in words; numbers order the others.
        note: What else the paper says; "" for nothing.
    """

    title: str
    source: str
    keys: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    reference: str = ""
    orders: tuple[tuple[str, str], ...] = ()
    note: str = ""

    def all_orders(self) -> list[tuple[str, str]]:
        """Return the (worse, better) pairs that the paper's numbers and words state."""
        known = [(row.name, row.brier_lm) for row in self.rows if row.brier_lm is not None]
        ordered = [(a, b) for a, low in known for b, high in known if low < high]
        return list(dict.fromkeys([*ordered, *self.orders]))


CHUNK = PublishedTable(
    title="Chunk size K",
    source="figure 4",
    keys=("model.K",),
    rows=(
        PublishedRow({"model.K": 1}, "1", words="worse than a Transformer of equal FLOPs"),
        PublishedRow({"model.K": 2}, "2", words="half the cost of K = 1 for a marginal loss"),
        PublishedRow({"model.K": 4}, "4", words="beyond the Transformer front"),
        PublishedRow({"model.K": 8}, "8", words="falls back"),
    ),
    note="K = 8 falls back for lack of model capacity, says the paper.",
)
LATENT = PublishedTable(
    title="Latent dimension l",
    source="figure 7",
    keys=("model.l",),
    rows=(
        PublishedRow({"model.l": 32}, "32", words="below the peak"),
        PublishedRow({"model.l": 64}, "64", words="below the peak"),
        PublishedRow({"model.l": 128}, "128", words="the peak"),
        PublishedRow({"model.l": 256}, "256", words="below the peak"),
    ),
    orders=(("32", "128"), ("64", "128"), ("256", "128")),
    note="With K = 4. The paper's dropout grows with l (0.05, 0.10, 0.15, 0.20); reconstruction is high for all four.",
)
SAMPLES = PublishedTable(
    title="Model samples N in the energy loss",
    source="table 3",
    keys=("model.N",),
    rows=(
        PublishedRow({"model.N": 2}, "2", 4.37, 0.82),
        PublishedRow({"model.N": 8}, "8", 4.70, 1.0),
        PublishedRow({"model.N": 12}, "12", 4.72, 1.13),
    ),
    reference="8",
)
TARGETS = PublishedTable(
    title="Target samples M in the energy loss",
    source="table 3",
    keys=("model.M",),
    rows=(PublishedRow({"model.M": 100}, "100", words="the default"),),
    note="The paper finds M nearly free.",
)
ALPHA = PublishedTable(
    title="Exponent alpha of the energy distance",
    source="table 4",
    keys=("model.alpha",),
    rows=(
        PublishedRow({"model.alpha": Below(1.0)}, "below 1", words="diverges"),
        PublishedRow({"model.alpha": 1.0}, "1", 4.70, words="the best"),
        PublishedRow({"model.alpha": 2.0}, "2", 0.0),
    ),
    orders=(("below 1", "1"),),
)
WEIGHT = PublishedTable(
    title="Weight beta of the KL term",
    source="figure 6",
    keys=(BETA,),
    rows=(
        PublishedRow({BETA: 0.0}, "0", words="clearly worse than 0.001"),
        PublishedRow({BETA: 0.001}, "0.001", words="the best of these"),
        PublishedRow({BETA: 0.1}, "0.1", words="clearly worse than 0.001"),
    ),
    orders=(("0", "0.001"), ("0.1", "0.001")),
)
REGULARISATION = PublishedTable(
    title="Regularisers of the autoencoder",
    source="table 2",
    keys=REGULARISERS,
    rows=(
        PublishedRow({BETA: 0.0, DROP_TOKEN: 0.0, DROP_LATENT: 0.0}, "reconstruction only", 3.99),
        PublishedRow({BETA: 0.001, KL_CLIP: 0.0, DROP_TOKEN: 0.0, DROP_LATENT: 0.0}, "KL", words="below 3.99"),
        PublishedRow(
            {BETA: 0.001, KL_CLIP: Above(0.0), DROP_TOKEN: Above(0.0), DROP_LATENT: Above(0.0)},
            "KL + clipping + DropToken + DropLatent",
            4.70,
        ),
    ),
    orders=(("KL", "reconstruction only"), ("KL", "KL + clipping + DropToken + DropLatent")),
    note="The paper clips at 0.5 nats per dimension and drops tokens and latents with probability 0.15 (l = 128).",
)
HEADS = PublishedTable(
    title="Generative head",
    source="figures 8 and 9",
    keys=("model.head",),
    rows=(
        PublishedRow({"model.head": "energy"}, "energy", words="the best, in one step"),
        PublishedRow({"model.head": "flow"}, "flow", words="close, at 4 steps"),
        PublishedRow({"model.head": "diffusion"}, "diffusion", words="the last, needs about 100 steps"),
    ),
    orders=(("flow", "energy"), ("diffusion", "energy"), ("diffusion", "flow")),
)
INPUTS = PublishedTable(
    title="What the model reads of the previous chunk",
    source="table 5",
    keys=("model.input",),
    rows=(
        PublishedRow({"model.input": "discrete"}, "discrete", 4.70),
        PublishedRow({"model.input": "latent"}, "latent", 3.25),
        PublishedRow({"model.input": "both"}, "both", 4.40),
    ),
)
TABLES = (CHUNK, LATENT, SAMPLES, TARGETS, ALPHA, WEIGHT, REGULARISATION, HEADS, INPUTS)
"""The published ablations in the order of reports."""
NOT_COMPARABLE = (
    "The paper's absolute values are not comparable with ours: its models had another budget, corpus and vocabulary. "
    "The order of the rows may be compared."
)
