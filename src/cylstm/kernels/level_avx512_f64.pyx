"""Kernels for avx512 in float64."""
include "level.pxi"
