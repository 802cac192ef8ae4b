"""Simulation, relaxation, drift analysis and their reports."""
