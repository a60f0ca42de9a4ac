"""Losses over padded batches and lists of sequences, each with its gradient.

Each loss is the formula of one element; which elements count, where they come from and how they are
reduced is said in `elements`, once for all.
"""

from cylstm.training.losses.classification import binary_cross_entropy_with_logits, cross_entropy
from cylstm.training.losses.regression import huber_loss, l1_loss, mse_loss, quantile_loss

__all__ = [
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "l1_loss",
    "mse_loss",
    "quantile_loss",
]
