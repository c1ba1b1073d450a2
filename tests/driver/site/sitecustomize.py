"""Has each Python process that starts with this folder on PYTHONPATH run on a listening device.

So a program's own processes find a device where there is none. ULMFIT_FAST_LISTENING names the
folder of the library, which `listening.build` has filled.
"""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
import listening

listener = listening.connect(os.environ["ULMFIT_FAST_LISTENING"])
import programs  # noqa: E402

programs.stand_in()
listener.__enter__()
