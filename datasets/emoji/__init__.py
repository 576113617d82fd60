"""A dataset with the long tail of LVIS, drawn from emoji."""
