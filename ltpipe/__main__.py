"""`python -m ltpipe` is `ltpipe`."""

import sys

from ltpipe.cli import main

sys.exit(main())
