"""Atoms with the pairs, edges and triplets within the cutoff: the input of every network."""
