"""GFN2-xTB reference data that comes with the package."""
