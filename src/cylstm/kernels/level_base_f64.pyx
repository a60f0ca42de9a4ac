"""Kernels for base in float64."""
include "level.pxi"
