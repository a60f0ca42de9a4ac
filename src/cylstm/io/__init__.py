"""Networks of other systems, and files."""
