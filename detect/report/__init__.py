"""Reports: HTML pages of an evaluation and of a grid, and what AFS chose."""
