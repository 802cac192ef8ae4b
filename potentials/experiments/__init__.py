"""The paper's experiments on potentials: settings, runs, tables, figures."""
