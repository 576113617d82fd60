"""Which anchor is to find which object."""
