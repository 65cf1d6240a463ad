"""Many trainings and one table: methods or sources, by category and seed."""
