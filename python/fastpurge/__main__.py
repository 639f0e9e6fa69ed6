"""``python -m fastpurge``."""

import sys

from fastpurge.frontends.cli import main

sys.exit(main())
