"""Kernels for base in float32."""
include "level.pxi"
