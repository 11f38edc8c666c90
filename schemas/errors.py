"""Every error of the project, branched by what the caller does next: retry, reject the input, refuse to start, fail."""


class SigmaError(Exception):
    """The root of all errors raised on purpose. The message says what was found, what is allowed and the cure."""

    exit_code = 1


class RetryLaterError(SigmaError):
    """A service is away or another worker was faster: the same work will succeed when tried again."""


class RejectInputError(SigmaError):
    """One input cannot be used. It goes to the dead letters with `code` and the message; the stream goes on."""

    exit_code = 2

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UsageError(SigmaError):
    """The command or its files are wrong: nothing was started or written. Exit code 2."""

    exit_code = 2


class RefuseToStartError(SigmaError):
    """Settings, database, codebook and checkpoint do not belong together. Starting would give wrong answers."""

    exit_code = 2


class WorkFailedError(SigmaError):
    """The work was started and did not finish; the message says what is left and how to resume. Exit code 1."""
