"""Every error of the project. A branch says what the caller does next: retry, reject the input,
refuse to start, or report failed work.

Messages have the form "k must be between 1 and 100, got 250; lower k": the value found, what is
allowed, and how to fix it. They end up on a terminal, in logs and in dead letters, so they never
contain a secret.
"""


class SigmaError(Exception):
    """The root of all errors raised on purpose; anything else is a bug."""

    exit_code = 1
    """What the command line exits with when this error ends it."""


class RetryLaterError(SigmaError):
    """Retry: a service is unavailable or another worker was faster; the same work will succeed."""


class RejectInputError(SigmaError):
    """Reject the input: one image or event cannot be used, and the stream goes on without it.

    The input goes to the dead letters with `code`, which programs compare, and the message.
    """

    exit_code = 2

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UsageError(SigmaError):
    """Correct the call: an argument, a setting or a file is wrong; nothing started or changed."""

    exit_code = 2


class RefuseToStartError(SigmaError):
    """Refuse to start: settings, database, codebook and checkpoint do not belong together.

    Starting all the same would give wrong answers.
    """

    exit_code = 2


class WorkFailedError(SigmaError):
    """Report failed work: it was started and did not finish.

    The message says what is left behind and how to resume.
    """


def brief(error: BaseException) -> str:
    """Shorten the message of another library's error: psycopg's may quote a whole statement."""
    return str(error).strip()[:300]
