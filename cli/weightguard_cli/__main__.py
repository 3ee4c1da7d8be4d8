"""``python -m weightguard_cli``: the command without its script."""

import sys

from weightguard_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
