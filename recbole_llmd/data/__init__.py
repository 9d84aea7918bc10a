"""Item texts and the windows of all-position training."""
