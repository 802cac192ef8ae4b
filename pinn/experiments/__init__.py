"""The paper's tables 3 to 5, and comparisons of activations."""
