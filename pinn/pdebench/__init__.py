"""Reading, writing and generating PDEBench data."""
