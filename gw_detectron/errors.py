"""The error of a user's mistake."""


class UsageError(ValueError):
    """
    A mistake in what the user wrote: a config value, an argument, a file.

    Its message is one line that names what was written and the way out, so that a command-line
    tool can print it alone, without a traceback.
    """
