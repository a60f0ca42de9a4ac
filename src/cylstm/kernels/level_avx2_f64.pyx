"""Kernels for avx2 in float64."""
include "level.pxi"
