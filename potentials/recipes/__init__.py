"""Training recipes: small TOML files, read by :mod:`dcase.potentials.fitting.recipe`."""
