"""Settings of the test suite."""

from hypothesis import settings

# The same examples on every run and machine, and no time limit on a shared one.
settings.register_profile("cylstm", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("cylstm")
