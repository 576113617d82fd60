"""The error of this package."""


class DataError(ValueError):
    """A dataset that cannot be used: which file, what was found, what was expected, what to do."""
