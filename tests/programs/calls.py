"""Lets a test call functions of another process: a call per line, as JSON, and an answer to each."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
from typing import Any


def answer_calls(functions: dict[str, Any]) -> None:
    """Answers until the standard input ends; what a function prints goes with its result."""
    for line in sys.stdin:
        call = json.loads(line)
        answer, printed = {}, io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                answer["result"] = functions[call["function"]](*call["arguments"], **call["options"])
        except Exception:
            answer["traceback"] = traceback.format_exc()
        print("ANSWER" + json.dumps({**answer, "printed": printed.getvalue()}), flush=True)
