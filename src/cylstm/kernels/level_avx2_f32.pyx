"""Kernels for avx2 in float32."""
include "level.pxi"
