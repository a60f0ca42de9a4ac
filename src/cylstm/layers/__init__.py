"""Layers: what is special to each, and what the recurrent ones share."""
