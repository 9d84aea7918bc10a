"""``python -m recbole_llmd``: the same as the command ``recbole-llmd``."""

import sys

from recbole_llmd.cli import main

if __name__ == "__main__":
    sys.exit(main())
