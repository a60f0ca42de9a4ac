"""Complete programs on real data."""
