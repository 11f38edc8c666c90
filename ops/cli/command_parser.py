"""The parser of one command: options may stand before, between and behind its arguments."""

import argparse
from collections.abc import Iterable
from typing import Any, TypeVar, overload

N = TypeVar("N")


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` that reads options first.

    The standard library's, up to Python 3.12, gives a list of arguments all that stands before the
    first option, though that be nothing: `bench corpus --seed 1 FILE` would have no file.
    """

    _reads_options = False

    @overload
    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: None = None
    ) -> tuple[argparse.Namespace, list[str]]: ...

    @overload
    def parse_known_args(self, args: Iterable[str] | None, namespace: N) -> tuple[N, list[str]]: ...

    @overload
    def parse_known_args(self, *, namespace: N) -> tuple[N, list[str]]: ...

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse as the command line's parser asks for, in two passes of the library's own."""
        # The library's passes come back to this method.
        if self._reads_options:
            return super().parse_known_args(args, namespace)
        self._reads_options = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._reads_options = False
