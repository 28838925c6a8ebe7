"""The two errors that a user sees as one line: what was wrong, where, what to do."""


class AndscaleError(Exception):
    """Base of the errors whose text is written for the user; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(AndscaleError, ValueError):
    """What was asked for cannot be done as asked (exit code 2); nothing was written."""

    exit_code = 2


class RunError(AndscaleError, RuntimeError):
    """The work itself failed: damaged data, a failed job, a check that did not hold (exit code 1)."""

    exit_code = 1


class SourceUnavailableError(RunError):
    """A raw data set could be obtained from none of the places that were tried."""
