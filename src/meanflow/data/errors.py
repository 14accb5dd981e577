"""The one error that this room raises for data it cannot use."""


class DataError(ValueError):
    """Data that cannot be used; the message says what came, what was wanted and what to do."""
