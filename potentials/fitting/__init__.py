"""From labelled frames to a potential, and how good it is: recipes, fits, folds, errors."""
