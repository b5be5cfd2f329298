"""``python -m tubelet`` is ``tubelet``."""

import sys

from tubelet.cli import main

sys.exit(main())
