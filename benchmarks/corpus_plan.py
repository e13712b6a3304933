"""A billion sentences on 64 GPUs, simulated: how long, how much is done twice, what the object store is asked.

    python benchmarks/corpus_plan.py

Little here is measured: every assumption is a field of `Plan` and is printed. Fragments are handed out one by one, as
`encode_corpus` does; a worker that is lost does its fragment again, after a replacement has come.
"""

from __future__ import annotations

import heapq
import random
import statistics
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Plan:
    """What is assumed; times in seconds, rates a second, sizes in bytes."""

    sentences: int = 1_000_000_000
    tokens: int = 20  # of a sentence
    template_tokens: int = 9  # behind it; those in front are computed once
    parameters: float = 7e9  # of the model
    flops: float = 989e12  # of a GPU, in bfloat16
    utilisation: float = 0.4  # of those
    workers: int = 64
    fragment_rows: int = 32_768
    spread: float = 0.05  # standard deviation of a worker's logarithmic speed
    slow_share: float = 0.03  # of the workers
    slow_factor: float = 0.5  # of their speed
    noise: float = 0.05  # standard deviation of a fragment's logarithmic time
    lost_per_hour: float = 0.05  # of each worker: preemptible machines
    replacement: float = 300.0  # until another machine has come
    opening: float = 120.0  # until it has the model
    overhead: float = 0.5  # of a fragment: opening files, the scheduler, putting the part in place
    tokenising: float = 95e-6  # of a sentence, for which the GPU waits: measured on one core
    writing: float = 200e6  # bytes a second, encoding Parquet and sending it: half of what one core encodes
    fragments_per_row_group: int = 32  # pieces that a large row group is cut into, each of which reads all of it
    bytes_per_sentence: int = 90  # compressed in Parquet
    dimension: int = 4096
    bytes_per_number: int = 2
    multipart: int = 10 * 2**20  # of an upload
    hourly_price: float = 2.5  # of a GPU, in dollars

    @property
    def sentences_per_second(self) -> float:
        """Of a GPU at its median."""
        return self.flops * self.utilisation / (2 * self.parameters * (self.tokens + self.template_tokens))


def simulate(plan: Plan, seed: int = 0) -> dict[str, float]:
    """Returns hours, and what they hold."""
    chance = random.Random(seed)
    speeds = [
        plan.sentences_per_second
        * chance.lognormvariate(0, plan.spread)
        * (plan.slow_factor if chance.random() < plan.slow_share else 1)
        for _ in range(plan.workers)
    ]
    part = plan.fragment_rows * plan.dimension * plan.bytes_per_number
    beside = plan.overhead + plan.fragment_rows * plan.tokenising + part / plan.writing
    left = -(-plan.sentences // plan.fragment_rows)
    total, lost, redone = left, 0, 0.0
    free = [(plan.opening, worker) for worker in range(plan.workers)]
    next_loss = [chance.expovariate(plan.lost_per_hour / 3600) if plan.lost_per_hour else float("inf") for _ in speeds]
    ends, busy = [], 0.0
    heapq.heapify(free)
    while left:
        now, worker = heapq.heappop(free)
        work = plan.fragment_rows / speeds[worker] * chance.lognormvariate(0, plan.noise) + beside
        if next_loss[worker] < now + work:
            begun = max(next_loss[worker] - now, 0.0)
            lost, redone, busy = lost + 1, redone + begun, busy + begun
            back = max(next_loss[worker], now) + plan.replacement + plan.opening
            next_loss[worker] = back + chance.expovariate(plan.lost_per_hour / 3600)
            heapq.heappush(free, (back, worker))
            continue
        left -= 1
        busy += work
        ends.append(now + work)
        heapq.heappush(free, (now + work, worker))
    end = max(ends)
    idle = sum(max(end - now, 0.0) for now, _ in free)
    puts = total * (2 + -(-part // plan.multipart))  # create, parts, complete
    gets = total * 4  # the footer, and two column chunks in pieces
    return {
        "hours": end / 3600,
        "GPU hours": end / 3600 * plan.workers,
        "dollars": end / 3600 * plan.workers * plan.hourly_price,
        "workers lost": lost,
        "work done twice, share": redone / busy,
        "idle at the end, share": idle / (end * plan.workers),
        "fragments": total,
        "written, TB": total * part / 1e12,
        "read, TB": plan.sentences * plan.bytes_per_sentence * plan.fragments_per_row_group / 1e12,
        "PUT requests/s": puts / end,
        "GET requests/s": gets / end,
        "written, MB/s": total * part / end / 1e6,
    }


VARIANTS = {
    "as assumed": {},
    "no machine lost": {"lost_per_hour": 0.0},
    "ten times as many lost": {"lost_per_hour": 0.5},
    "a quarter of the workers slow": {"slow_share": 0.25},
    "fragments of 8,192 rows": {"fragment_rows": 8_192, "fragments_per_row_group": 128},
    "fragments of 262,144 rows": {"fragment_rows": 262_144, "fragments_per_row_group": 4},
    "input in row groups of 32,768": {"fragments_per_row_group": 1},
    "0.5e9 parameters, 1,024 numbers": {"dimension": 1024, "parameters": 0.5e9},
}
SHOWN = (
    "hours", "GPU hours", "workers lost", "work done twice, share", "idle at the end, share", "fragments",
    "written, TB", "read, TB", "PUT requests/s", "GET requests/s", "written, MB/s",
)  # fmt: skip


def main() -> None:
    """Prints the assumptions and a Markdown table of what follows, medians of 21 runs."""
    plan = Plan()
    print(f"A GPU encodes {plan.sentences_per_second:,.0f} sentences/s.")
    print("Assumed: " + ", ".join(f"{field.name} {getattr(plan, field.name):,}" for field in fields(plan)) + ".\n")
    print("| | " + " | ".join(SHOWN) + " |\n| --- |" + " ---: |" * len(SHOWN))
    for name, changes in VARIANTS.items():
        runs = [simulate(replace(plan, **changes), seed) for seed in range(21)]
        medians = {key: statistics.median(run[key] for run in runs) for key in SHOWN}
        cells = [f"{value:.2%}" if "share" in key else f"{value:,.4g}" for key, value in medians.items()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
