"""Active learning: train an ensemble, sample with it, label what it does not know, train again."""
