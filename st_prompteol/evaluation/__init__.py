"""Evaluation of embedding models: the paper's 14 SentEval tasks, MTEB, and models side by side."""

from __future__ import annotations

from st_prompteol.evaluation.cache import EmbeddingCache
from st_prompteol.evaluation.comparison import Comparison
from st_prompteol.evaluation.data import senteval_folder
from st_prompteol.evaluation.mteb import evaluate_mteb
from st_prompteol.evaluation.published import published_rows
from st_prompteol.evaluation.results import Run
from st_prompteol.evaluation.runner import evaluate_sts, evaluate_transfer, run_tasks
from st_prompteol.evaluation.score_table import ScoreRow, plot_scaling, write_scores
from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS, TRANSFER_TASKS, TaskResult

__all__ = [
    "STS_DEV_TASK",
    "STS_TASKS",
    "TRANSFER_TASKS",
    "Comparison",
    "EmbeddingCache",
    "Run",
    "ScoreRow",
    "TaskResult",
    "evaluate_mteb",
    "evaluate_sts",
    "evaluate_transfer",
    "plot_scaling",
    "published_rows",
    "run_tasks",
    "senteval_folder",
    "write_scores",
]
