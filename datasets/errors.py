"""The errors of this package."""


class DataError(ValueError):
    """A dataset that cannot be used: which file, what was found, what was expected, what to do."""


class UnreadableImage(DataError):
    """One image of a dataset that cannot be read, by its path and id."""
