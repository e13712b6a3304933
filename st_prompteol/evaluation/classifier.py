"""SentEval's logistic regression as one batched problem instead of hundreds of small training runs.

- A run is one classifier: one split of the examples, one L2 strength. Every run starts from the same seed, as each of
  SentEval's classifiers does, draws its own order of examples, and is stopped by its own validation accuracy.
- The runs of one split share their batches, therefore a batch is gathered once for all L2 strengths.
- Adam and the gradient of the softmax are implemented for stacked weights. Up to rounding, the result equals
  `torch.nn.Linear` layers trained one by one with `torch.optim.Adam(weight_decay=l2)`.
- Training is memory-bound: the number of splits trained together keeps their batches within the processor's cache.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BATCH_SIZE = 64
LEARNING_RATE = 1e-3  # constant
BETAS = (0.9, 0.999)
EPSILON = 1e-8
EPOCH_SIZE = 4  # epochs between two checks of the validation accuracy
MAX_EPOCHS = 200  # the check at 200 itself still starts another round of EPOCH_SIZE
TENACITY = 5  # rounds without improvement that are tolerated, in total, before training stops
HELD_OUT = 0.05  # fraction of the training examples used for validation if there is no validation set

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Row indices of the examples of one training problem.

    Args:
        train: Training rows.
        validation: Validation rows, whose accuracy stops the training and selects the weights. `None` holds out 5 % of
            `train`, drawn by the run's own generator.
        test: Test rows, scored with the selected weights.
    """

    train: Indices
    validation: Indices | None = None
    test: Indices | None = None

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """Numbers of training, validation and test rows. Splits of equal sizes can be trained together."""
        return tuple(None if rows is None else len(rows) for rows in (self.train, self.validation, self.test))


@dataclass(frozen=True)
class Classifiers:
    """Trained classifiers: `weight[split, run]` was trained with `l2[split][run]`.

    Args:
        weight: Weights, `(n_splits, n_runs, n_classes, dim)`.
        bias: Biases, `(n_splits, n_runs, n_classes)`.
        validation_accuracy: Validation accuracies from 0 to 1, `(n_splits, n_runs)`.
        test_accuracy: Test accuracies from 0 to 1, NaN for a split without test rows, `(n_splits, n_runs)`.
    """

    weight: Tensor
    bias: Tensor
    validation_accuracy: npt.NDArray[np.float64]
    test_accuracy: npt.NDArray[np.float64]


def train_classifiers(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    splits: Sequence[Split],
    l2: npt.ArrayLike,
    *,
    n_classes: int,
    seed: int = 1111,
    device: torch.device | str = "cpu",
    progress_bar: Any = None,
) -> Classifiers:
    """Trains one logistic regression per split and L2 strength.

    Args:
        features: Features, `(n, dim)`.
        labels: Classes below `n_classes`, `(n,)`.
        splits: The splits.
        l2: Weight decay of Adam, `(n_splits, n_runs)`.
        n_classes: Number of classes.
        seed: Seed of every run. Defaults to SentEval's 1111.
        device: Training device. Defaults to the CPU.
        progress_bar: A tqdm progress bar, advanced by one per finished split.

    Returns:
        The classifiers.

    Raises:
        ValueError: If a split without validation rows is too small to hold out 5 %.
    """
    decay = np.asarray(l2, dtype=np.float32)
    n_runs = decay.shape[1]
    # A column of ones makes the bias part of the weight; SentEval also applies weight decay to it.
    x = torch.ones(len(features), features.shape[1] + 1, device=device)
    x[:, :-1] = torch.from_numpy(features)
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels).to(device, torch.int64), n_classes).to(x.dtype)
    trainer = _Trainer(x, targets, seed)
    weight = torch.empty(len(splits), n_runs, n_classes, x.shape[1], device=device)
    validation_accuracy = np.empty((len(splits), n_runs))
    test_accuracy = np.full((len(splits), n_runs), np.nan)
    for chunk in trainer.chunks(splits):
        members = [splits[i] for i in chunk]
        weight[chunk], accuracy = trainer.train(members, torch.from_numpy(decay[chunk]).to(device), progress_bar)
        validation_accuracy[chunk] = accuracy
        if members[0].test is not None:
            test = _stack([split.test for split in members]).to(device)
            test_accuracy[chunk] = trainer.count_correct(weight[chunk], test).cpu().numpy() / test.shape[1]
    return Classifiers(weight[..., :-1], weight[..., -1], validation_accuracy, test_accuracy)


def initial_weight(dim: int, n_classes: int, seed: int) -> Tensor:
    """Returns the initial weights of `torch.nn.Linear(dim, n_classes)` after `torch.manual_seed(seed)`.

    PyTorch's global random state is left unchanged.

    Returns:
        The weight, with the bias as the last column, `(n_classes, dim + 1)`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layer = torch.nn.Linear(dim, n_classes)
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()


def _stack(rows: Sequence[Indices | None]) -> Tensor:
    return torch.from_numpy(np.stack([part for part in rows if part is not None]))


class _Trainer:
    """Trains chunks of splits on one feature matrix.

    Args:
        features: Features, `(n, width)`; the last column is ones.
        targets: One-hot classes, `(n, n_classes)`.
        seed: Seed of every run.
    """

    def __init__(self, features: Tensor, targets: Tensor, seed: int) -> None:
        self.features = features
        self.targets = targets
        self.seed = seed
        width = features.shape[1]
        # Measured on 2 cores with 64, 2,048 and 4,096 dimensions: 4 MiB of gathered features per step are fastest.
        limit = 2**20 if features.device.type == "cpu" else 2**28
        self.max_splits = max(1, limit // (BATCH_SIZE * width))
        self.buffer = features.new_empty(self.max_splits * BATCH_SIZE, width)

    def chunks(self, splits: Sequence[Split]) -> Iterator[list[int]]:
        """Yields the indices of splits to train together; they have equal sizes, therefore equal numbers of steps."""
        groups = defaultdict(list)
        for i, split in enumerate(splits):
            groups[split.sizes].append(i)
        for group in groups.values():
            for start in range(0, len(group), self.max_splits):
                yield group[start : start + self.max_splits]

    def gather(self, rows: Tensor) -> Tensor:
        """Returns the features of `rows` `(n_splits, n)`, as a view of the buffer, `(n_splits, n, width)`."""
        batch = self.buffer[: rows.numel()]
        torch.index_select(self.features, 0, rows.reshape(-1), out=batch)
        return batch.view(*rows.shape, -1)

    def scores(self, weight: Tensor, x: Tensor) -> Tensor:
        """Applies `weight` `(n_splits, n_runs, n_classes, width)` to `x` `(n_splits, n, width)`.

        Returns:
            The scores `(n_splits, n_runs, n_classes, n)`; a softmax over the last dimension would be slow.
        """
        return torch.bmm(weight.flatten(1, 2), x.transpose(1, 2)).view(*weight.shape[:3], -1)

    def count_correct(self, weight: Tensor, rows: Tensor) -> Tensor:
        """Counts the rows `(n_splits, n)` that `weight` classifies correctly; returns `(n_splits, n_runs)`."""
        correct = torch.zeros(weight.shape[:2], dtype=torch.int64, device=rows.device)
        for batch in torch.split(rows, BATCH_SIZE, dim=1):
            gold = self.targets[batch].argmax(2).unsqueeze(1)  # (n_splits, 1, n)
            correct += (self.scores(weight, self.gather(batch)).argmax(2) == gold).sum(2)
        return correct

    def train(self, splits: Sequence[Split], l2: Tensor, progress_bar: Any) -> tuple[Tensor, npt.NDArray[np.float64]]:
        """Trains all runs of splits of equal sizes.

        Args:
            splits: The splits.
            l2: Weight decay, `(n_splits, n_runs)`.
            progress_bar: A tqdm progress bar or `None`.

        Returns:
            The weights with each run's best validation accuracy, `(n_splits, n_runs, n_classes, width)`, and that
            accuracy, `(n_splits, n_runs)`.
        """
        n_splits, n_runs = l2.shape
        device = self.features.device
        random = np.random.RandomState(self.seed)  # stands for the generators of all runs, which draw the same numbers
        train = _stack([split.train for split in splits])
        if splits[0].validation is None:
            order = torch.from_numpy(random.permutation(train.shape[1]))
            n_validation = int(HELD_OUT * len(order))
            if n_validation == 0:
                raise ValueError(
                    f"{len(order)} training examples are too few to hold out {HELD_OUT:.0%}: give at least 20."
                )
            train, validation = train[:, order[n_validation:]], train[:, order[:n_validation]]
        else:
            validation = _stack([split.validation for split in splits])
        train, validation = train.to(device), validation.to(device)

        start = initial_weight(self.features.shape[1] - 1, self.targets.shape[1], self.seed).to(device)
        weight = start.repeat(n_splits, n_runs, 1, 1)  # (n_splits, n_runs, n_classes, width)
        state = torch.stack([weight, torch.zeros_like(weight), torch.zeros_like(weight)])
        decay = l2[:, :, None, None]
        best_weight = weight
        best = torch.full((n_splits, n_runs), -1, device=device)
        misses = torch.zeros_like(best)
        active = torch.arange(n_splits, device=device)
        step = 0
        for _ in range(0, MAX_EPOCHS + 1, EPOCH_SIZE):
            for _ in range(EPOCH_SIZE):
                order = torch.from_numpy(random.permutation(train.shape[1])).to(device)
                for rows in torch.split(train[:, order], BATCH_SIZE, dim=1):
                    step += 1
                    self.adam_step(state, rows, decay, step)
            correct = self.count_correct(state[0], validation)
            running = misses[active] <= TENACITY
            better = running & (correct > best[active])
            split, run = better.nonzero(as_tuple=True)
            best_weight[active[split], run] = state[0, split, run]
            best[active[split], run] = correct[split, run]
            misses[active] += running & ~better
            # A split is dropped when all of its runs have stopped: until then its batches are gathered anyway.
            keep = (misses[active] <= TENACITY).any(1)
            if not keep.all():
                if progress_bar is not None:
                    progress_bar.update(int((~keep).sum()))
                active, train, validation = active[keep], train[keep], validation[keep]
                state, decay = state[:, keep], decay[keep]
            if len(active) == 0:
                break
        if progress_bar is not None:
            progress_bar.update(len(active))
        return best_weight, best.cpu().numpy() / validation.shape[1]

    def adam_step(self, state: Tensor, rows: Tensor, decay: Tensor, step: int) -> None:
        """Takes one step of Adam on a batch.

        Args:
            state: Weight and Adam's two moments, `(3, n_splits, n_runs, n_classes, width)`; changed in place.
            rows: Row indices of the batch, `(n_splits, batch_size)`.
            decay: L2 strength, `(n_splits, n_runs, 1, 1)`.
            step: Number of this step, starting at 1.
        """
        weight, mean, square = state
        x = self.gather(rows)  # (n_splits, batch_size, width)
        error = self.scores(weight, x).softmax(2)  # (n_splits, n_runs, n_classes, batch_size)
        error -= self.targets[rows].transpose(1, 2).unsqueeze(1)
        error /= rows.shape[1]
        gradient = torch.bmm(error.flatten(1, 2), x).view_as(weight).addcmul_(weight, decay)
        mean.lerp_(gradient, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        deviation = square.sqrt().div_(math.sqrt(1 - BETAS[1] ** step)).add_(EPSILON)
        weight.addcdiv_(mean, deviation, value=-LEARNING_RATE / (1 - BETAS[0] ** step))
