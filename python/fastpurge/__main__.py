"""``python -m fastpurge``."""

import sys

from fastpurge.cli import main

sys.exit(main())
