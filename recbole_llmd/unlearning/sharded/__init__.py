"""One EASE in several processes: each holds some columns of its matrix."""
