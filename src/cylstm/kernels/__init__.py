"""The compiled code, and the choice of an instruction set."""
