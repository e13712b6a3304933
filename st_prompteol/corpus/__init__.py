"""Encodes files and corpora as streams, in constant memory."""

from __future__ import annotations

from st_prompteol.corpus.file import encode_file
from st_prompteol.corpus.run import CorpusReport, encode_corpus

__all__ = ["CorpusReport", "encode_corpus", "encode_file"]
