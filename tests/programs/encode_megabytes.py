"""Prints what a sentence of 5 MB takes: kilobytes of memory and seconds."""

import resource
import time

from st_prompteol import PromptEOL

model, text = PromptEOL("tiny"), "a sentence of words " * 250_000
model.encode(text[:100_000])
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
model.encode(text)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.perf_counter() - start)
