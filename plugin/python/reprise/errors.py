class DataError(Exception):
    """Input that cannot be used; the message says which file and line, and what to do."""
