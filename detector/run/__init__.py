"""A training run, from its configuration to the table at the end."""
