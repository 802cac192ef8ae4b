"""Trained potentials and structures that come with the package."""
