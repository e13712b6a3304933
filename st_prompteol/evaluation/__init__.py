"""Evaluation of embedding models on the paper's 14 SentEval tasks."""

from __future__ import annotations

from st_prompteol.evaluation.encoding import EmbeddingCache
from st_prompteol.evaluation.senteval import STS_DEV_TASK, STS_TASKS, TRANSFER_TASKS, TaskResult
from st_prompteol.evaluation.sts import evaluate_sts, evaluate_sts_task
from st_prompteol.evaluation.transfer import evaluate_transfer, evaluate_transfer_task

__all__ = [
    "STS_DEV_TASK",
    "STS_TASKS",
    "TRANSFER_TASKS",
    "EmbeddingCache",
    "TaskResult",
    "evaluate_sts",
    "evaluate_sts_task",
    "evaluate_transfer",
    "evaluate_transfer_task",
]
