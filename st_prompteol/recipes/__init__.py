"""Embeddings without training: search for a model's best template, layer, standardization and demonstrations."""

from st_prompteol.recipes.build import build_demonstrations
from st_prompteol.recipes.candidates import Candidate, read_candidates, write_candidates
from st_prompteol.recipes.endpoint import Endpoint
from st_prompteol.recipes.local_lm import LocalLM
from st_prompteol.recipes.menu import plot, summarize, write_table
from st_prompteol.recipes.pairs import read_pairs, sts_b_dev
from st_prompteol.recipes.recipe import Recipe
from st_prompteol.recipes.result import SearchResult, Step, Trial
from st_prompteol.recipes.searching import search
from st_prompteol.recipes.statistics import Gain

__all__ = [
    "Candidate",
    "Endpoint",
    "Gain",
    "LocalLM",
    "Recipe",
    "SearchResult",
    "Step",
    "Trial",
    "build_demonstrations",
    "plot",
    "read_candidates",
    "read_pairs",
    "search",
    "sts_b_dev",
    "summarize",
    "write_candidates",
    "write_table",
]
