"""Where a run is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cursor"]


@dataclass
class Cursor:
    """The position of a run, and what its present epoch has come to so far.

    Attributes:
        epoch: finished epochs.
        batch: finished batches of the epoch after those.
        loss_sum: of these batches, cross entropy times items.
        items: tokens (language model) or texts (classifier) of these batches.
        seconds: time spent on them.
        best_loss: lowest validation loss of a finished epoch, or None.
        epochs_since_best: epochs finished since then.
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    items: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    epochs_since_best: int = 0

    def next_epoch(self) -> None:
        """Count the present epoch as finished."""
        self.epoch += 1
        self.batch, self.loss_sum, self.items, self.seconds = 0, 0.0, 0, 0.0

    def validated(self, loss: float) -> bool:
        """Take the validation loss of an epoch in; return whether it is the lowest so far.

        Args:
            loss: in nats.
        """
        best = self.best_loss is None or loss < self.best_loss
        self.best_loss = loss if best else self.best_loss
        self.epochs_since_best = 0 if best else self.epochs_since_best + 1
        return best
