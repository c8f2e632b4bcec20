"""What a run was trained and scored on, as MLflow's datasets.

They are described as plain JSON while the corpus is open, so that the description can lie in a run's outbox and be sent
when the corpus is out of reach. A dataset is one split of one corpus: its digest follows from the corpus' hash, so the
same split is the same dataset in every run, wherever the corpus lies. A mixture of domains is a dataset of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from calm_lightning.errors import DataError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from calm_lightning.data.config import DataConfig
    from calm_lightning.data.corpus import Corpus

TRAINING, VALIDATION, EVALUATION = "training", "validation", "evaluation"
_CONTEXT = "mlflow.data.context"
"""MLflow's tag that says what a dataset was used for; the UI shows it beside the name."""
_MODEL = "model"
_DIGEST = 16
"""Characters of a digest: MLflow allows 36, and shows all of them behind the name."""
_LONGEST_NAME = 500


def describe_datasets(resolved: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Describe the splits that a run trains on and is evaluated on.

    A corpus that cannot be opened gives none: whoever needs its tokens says what is wrong with it.

    Args:
        resolved: The resolved configuration of the run as nested mappings.

    Returns:
        One description per split, plain JSON, as `log_datasets` takes them.
    """
    from calm_lightning.data.config import DataConfig

    config = DataConfig(**resolved["data"])
    parts = ((config.train_split, TRAINING), (config.eval_split, VALIDATION))
    return [one for split, context in parts for one in describe_split(config, split, context)]


def describe_split(config: DataConfig, split: str, context: str) -> list[dict[str, Any]]:
    """Describe one split of the corpus that a configuration names.

    Args:
        config: The data configuration.
        split: The split.
        context: What it is used for: "training", "validation" or "evaluation".

    Returns:
        Its description in a list; none where there is no such corpus or split.
    """
    from calm_lightning.data.corpus import Corpus
    from calm_lightning.data.files.remote import shown
    from calm_lightning.data.mixture import domain_shares

    if not config.corpus:
        return []
    try:
        corpus = Corpus(replace(config, shards_at=""))  # no shard is read, and no command of a stranger's is run
        record, name, place = corpus.manifest.split(split), corpus.hash, shown(config.corpus)
        sizes = {domain: counts.tokens or counts.text_bytes for domain, counts in record.domains.items()}
        shares = domain_shares(config, sizes) if context == TRAINING else None
    except DataError:
        return []
    corpus_name = PurePosixPath(place.rstrip("/")).name or "corpus"
    source = {
        _location_key(place): place,
        "corpus": corpus_name,
        "manifest_sha256": corpus.manifest.corpus_hash,
        "split": split,
        "shards": len(record.shards),
    }
    return [
        {
            "name": f"{corpus_name}/{split}"[:_LONGEST_NAME],
            "digest": _digest(name, split, shares),
            "source_type": _source_type(place),
            "source": json.dumps(source),
            "schema": _schema(corpus, config.block_tokens),
            "profile": json.dumps(_profile(corpus, split, shares)),
            "tags": {_CONTEXT: context},
        }
    ]


def describe_text(name: str, sha256: str, tokens: int) -> dict[str, Any]:
    """Describe a text that is no corpus and was evaluated on.

    Args:
        name: What it is called, for example the file's name.
        sha256: SHA-256 of its documents.
        tokens: Its tokens, separators included.
    """
    return {
        "name": name[:_LONGEST_NAME],
        "digest": sha256[:_DIGEST],
        "source_type": "local",
        "source": json.dumps({"uri": name, "sha256": sha256}),
        "schema": None,
        "profile": json.dumps({"tokens": tokens}),
        "tags": {_CONTEXT: EVALUATION},
    }


def describe_model(identity: str) -> dict[str, Any]:
    """Describe a trained model that a run uses: for MLflow that is an input as datasets are.

    Args:
        identity: Identity of the run that trained it.
    """
    return {_MODEL: identity}


def log_datasets(client: MlflowClient, run_id: str, described: Sequence[Mapping[str, Any]]) -> None:
    """Log the datasets, and of models those that are in the store, which a run does not have yet.

    Args:
        client: The MLflow client.
        run_id: MLflow run id.
        described: Descriptions.

    Raises:
        Exception: Whatever the store does.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if not described:
        return
    run = client.get_run(run_id)
    known = {(one.dataset.name, one.dataset.digest) for one in (run.inputs.dataset_inputs if run.inputs else [])}
    fresh = []
    for one in described:
        if _MODEL not in one and (one["name"], one["digest"]) not in known:
            values = [one[key] for key in ("name", "digest", "source_type", "source", "schema", "profile")]
            fresh.append(DatasetInput(Dataset(*values), [InputTag(key, value) for key, value in one["tags"].items()]))
    if fresh:
        client.log_inputs(run_id, datasets=fresh)
    if models := [one[_MODEL] for one in described if _MODEL in one]:
        from calm_lightning.tracking.models.logging import find_model, use_models

        found = [find_model(client, run.info.experiment_id, identity) for identity in models]
        use_models(client, run_id, [model_id for model_id in found if model_id is not None])


def _digest(corpus_hash: str, split: str, shares: Mapping[str, float] | None) -> str:
    """Return what tells datasets of one name apart: tokens of the corpus, split, mixture of domains."""
    parts = [corpus_hash, split, *([json.dumps(shares, sort_keys=True)] if shares is not None else [])]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:_DIGEST]


def _source_type(place: str) -> str:
    """Return MLflow's word for the kind of place: what `mlflow.data.get_source` opens."""
    scheme = place.partition("://")[0] if "://" in place else "local"
    return {"https": "http", "file": "local"}.get(scheme, scheme)


def _location_key(place: str) -> str:
    return "url" if _source_type(place) == "http" else "uri"


def _schema(corpus: Corpus, block_tokens: int) -> str:
    """Return the form of what a model reads: blocks of token ids."""
    spec = {"dtype": corpus.manifest.dtype or "int32", "shape": [-1, block_tokens]}
    features = json.dumps([{"name": "tokens", "type": "tensor", "tensor-spec": spec}])
    return json.dumps({"mlflow_tensorspec": {"features": features, "targets": None}})


def _profile(corpus: Corpus, split: str, shares: Mapping[str, float] | None) -> dict[str, Any]:
    """Return how much is in it; by domain too, with the share of training that each has in a mixture."""
    record = corpus.manifest.split(split)

    def counted(counts: Any) -> dict[str, int]:
        known = {"documents": counts.documents, "tokens": counts.tokens, "text_bytes": counts.text_bytes}
        return {name: value for name, value in known.items() if value}  # a corpus of text counts no tokens

    domains: dict[str, dict[str, float]] = {}
    for name, counts in record.domains.items():
        domains[name] = {**counted(counts), **({} if shares is None else {"share": shares.get(name, 0.0)})}
    return {**counted(record.totals), "vocabulary": corpus.vocabulary, "domains": domains}
