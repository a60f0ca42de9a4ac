"""Losses, optimisers and truncated backpropagation."""
