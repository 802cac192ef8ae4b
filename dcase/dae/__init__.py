"""Neural DAEs: networks for constrained dynamics."""
