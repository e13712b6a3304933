"""Scores a saved model by mteb, plainly and by `evaluate_mteb`, twice; prints the scores as JSON."""

import json
import sys
import warnings
from typing import Any

import torch

warnings.simplefilter("ignore")
torch.set_num_threads(1)
folder, results, *tasks = sys.argv[1:]


def scores(result: Any) -> dict[str, float]:
    return {task.task_name: task.get_score() for task in result.task_results}


sys.modules["st_prompteol"] = None  # type: ignore[assignment]  # importing it is an error
import huggingface_hub
import mteb
from sentence_transformers import SentenceTransformer

cache = mteb.ResultCache(f"{results}-plain")
plain = mteb.evaluate(SentenceTransformer(folder), mteb.get_tasks(tasks=tasks), cache=cache, show_progress_bar=False)
del sys.modules["st_prompteol"]
from st_prompteol import PromptEOL
from st_prompteol.evaluation import evaluate_mteb

model = PromptEOL(folder)
try:
    evaluate_mteb(model, ["STS112"])
except ValueError as error:
    unknown = str(error)
ours = evaluate_mteb(model, tasks, name=folder, results_dir=results)
model.encode = None  # finished tasks are not run again, and need no Hub
huggingface_hub.constants.HF_HUB_OFFLINE = True
again = evaluate_mteb(model, tasks, name=folder, results_dir=results)
print(json.dumps({"unknown": unknown, "plain": scores(plain), "ours": scores(ours), "again": scores(again)}))
