"""The parts of `mutants.py`: mutants written by hand, mutants generated, and the trial of one."""
