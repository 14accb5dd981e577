"""python -m meanflow.cli"""

import sys

from . import main

sys.exit(main())
