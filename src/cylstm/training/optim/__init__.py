"""Optimisers over whole modules, and clipping of gradients: both work on the flat vectors."""

from cylstm.training.optim.algorithms import SGD, Adam, AdamW
from cylstm.training.optim.clipping import clip_grad_norm, clip_grad_value
from cylstm.training.optim.optimizer import Optimizer

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_grad_norm", "clip_grad_value"]
