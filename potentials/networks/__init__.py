"""Networks of atoms: one file or folder an architecture, their parts and their registry."""
