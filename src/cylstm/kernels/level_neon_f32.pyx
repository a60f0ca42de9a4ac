"""Kernels for neon in float32."""
include "level.pxi"
