"""In-context learning: candidates for demonstrations, and the search for the best ones."""

from st_prompteol.demonstrations.build import build_demonstrations
from st_prompteol.demonstrations.candidates import Candidate, read_candidates, write_candidates
from st_prompteol.demonstrations.endpoint import Endpoint
from st_prompteol.demonstrations.local_lm import LocalLM
from st_prompteol.demonstrations.pairs import read_pairs, sts_b_dev
from st_prompteol.demonstrations.search import SearchResult, Trial, search_demonstrations

__all__ = [
    "Candidate",
    "Endpoint",
    "LocalLM",
    "SearchResult",
    "Trial",
    "build_demonstrations",
    "read_candidates",
    "read_pairs",
    "search_demonstrations",
    "sts_b_dev",
    "write_candidates",
]
