"""Time steps: integrators, compiled loops, replicas, and what watches them."""
