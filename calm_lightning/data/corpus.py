"""A corpus as its readers see it: manifest, tokenizer and shards, wherever they lie and of whichever kind they are."""

from __future__ import annotations

import hashlib
from functools import cached_property

from calm_lightning.data.config import DataConfig
from calm_lightning.data.files.fetch import Access, CorpusFiles
from calm_lightning.data.files.remote import PIPE, shown
from calm_lightning.data.shards.manifest import TOKENS, Manifest
from calm_lightning.data.stores.store import ShardStore, TokenStore
from calm_lightning.data.tokenizers import Tokenizer, check_content, tokenizer_from
from calm_lightning.errors import DataError


class Corpus:
    """An open corpus.

    Attributes:
        place: Its directory or address.
        manifest: Its manifest.
    """

    def __init__(self, config: DataConfig, *, commands: bool = False) -> None:
        """Open the corpus that a configuration names; no shard is read.

        Args:
            config: The data configuration.
            commands: Whether `data.shards_at` may be a command. It may where the user gave the configuration, and not
                where it was found in a run's directory, which may be somebody else's.

        Raises:
            DataError: There is no such corpus, its tokenizer is not the one its shards were made with, or a corpus
                of text was given without a tokenizer, or one of tokens with one.
        """
        if not config.corpus:
            raise DataError(
                "data.corpus is empty: make a corpus with `calm data prepare sample --out corpora/sample-bytes "
                "--tokenizer bytes` and set data.corpus=corpora/sample-bytes"
            )
        if config.shards_at.startswith(PIPE) and not commands:
            raise DataError(
                f"the run's configuration reads its shards with a command ({shown(config.shards_at)}), which is not "
                f"taken from a run's directory: say what to score with --text FILE"
            )
        self.place = config.corpus
        access = Access(
            shards_at=config.shards_at,
            cache_dir=config.cache_dir,
            cache_gb=config.cache_gb,
            retries=config.retries,
            timeout=config.timeout,
        )
        self._files = CorpusFiles(config.corpus, access)
        self._spec, self._train_split = config.tokenizer, config.train_split
        self.manifest: Manifest = self._files.manifest()
        record = self.manifest.tokenizer
        if record is None:
            return
        if config.tokenizer:
            raise DataError(
                f"data.tokenizer={config.tokenizer} was given, but {self.place} is tokenised already ({record.kind}): "
                f"leave data.tokenizer empty, or use a corpus of text (calm data prepare --shards text)"
            )
        data = self._files.small_file(record.file) if record.file else None
        check_content(record, data, self.place)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: the corpus' own, or the one that the configuration names."""
        record = self.manifest.tokenizer
        if record is not None:
            data = self._files.small_file(record.file) if record.file else None
            return tokenizer_from(record, data, self.place)
        from calm_lightning.data.stores.text import text_tokenizer

        return text_tokenizer(self._files, self.manifest, self._spec, split=self._train_split)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the tokenizer."""
        record = self.manifest.tokenizer
        return record.fingerprint if record else self.tokenizer.fingerprint

    @property
    def vocabulary(self) -> int:
        """Vocabulary size V of the tokenizer."""
        record = self.manifest.tokenizer
        return record.vocabulary if record else self.tokenizer.vocabulary

    @property
    def hash(self) -> str:
        """SHA-256 that names the tokens: of the manifest, and of the tokenizer where the manifest has none."""
        if self.manifest.kind == TOKENS:
            return self.manifest.corpus_hash
        from calm_lightning.data.stores.text import RECIPE

        return hashlib.sha256(f"{self.manifest.corpus_hash} {self.fingerprint} {RECIPE}".encode()).hexdigest()

    @cached_property
    def store(self) -> ShardStore:
        """Its shards."""
        if self.manifest.kind == TOKENS:
            return TokenStore(self._files, self.manifest)
        from calm_lightning.data.stores.text import TextStore

        return TextStore(self._files, self.manifest, self.tokenizer)
