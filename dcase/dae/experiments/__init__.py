"""The tables and figures of the neural-DAE paper, and a study of projections."""
