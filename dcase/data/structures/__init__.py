"""Start geometries of the MD17 molecules."""
