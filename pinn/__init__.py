"""Physics-informed networks: PDEBench tasks and a user's own equations."""
