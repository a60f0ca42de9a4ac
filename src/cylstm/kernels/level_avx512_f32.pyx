"""Kernels for avx512 in float32."""
include "level.pxi"
