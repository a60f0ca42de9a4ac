"""Kernels for neon in float64."""
include "level.pxi"
