"""What `make bench-…` runs: measurements whose figures are in the docs."""
