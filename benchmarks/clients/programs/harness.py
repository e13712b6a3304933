"""Runs a program in its environment: `python -P harness.py PROGRAM REQUEST`; appends a line of JSON per folder."""

import json
import runpy
import sys
from typing import Any


def to_numbers(row: Any) -> list[Any]:
    """Returns the numbers of an array, a tensor or a list."""
    return [number.item() if hasattr(number, "item") else number for number in row]


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        request = json.load(file)
    embed = runpy.run_path(sys.argv[1])["embed"]
    for kind, folder in request["folders"].items():
        try:
            answer: dict[str, Any] = {"rows": [to_numbers(row) for row in embed(folder, request["sentences"])]}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        with open(request["answers"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **answer}) + "\n")
