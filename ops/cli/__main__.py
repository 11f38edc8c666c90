"""`python -m ops.cli`: the command line without its console script, as workers are started."""

import sys

from ops.cli.start import main

if __name__ == "__main__":
    sys.exit(main())
