"""Encoding files and corpora: sentences stream in, embeddings stream out, and memory does not grow with either."""

from __future__ import annotations

from st_prompteol.corpus.file import encode_file
from st_prompteol.corpus.run import CorpusReport, encode_corpus

__all__ = ["CorpusReport", "encode_corpus", "encode_file"]
