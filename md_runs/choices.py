"""Names that settings choose from, where what they name must not know the settings."""

CONSTRAINTS = ("none", "bonds-to-hydrogen", "all-bonds")
"""Which bonds are held at their length."""
