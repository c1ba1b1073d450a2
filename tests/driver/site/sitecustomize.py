"""Has each Python process that starts with this folder on PYTHONPATH run on a listening device.

So a program's own processes find a device where there is none. ULMFIT_FAST_LISTENING names the
folder of the library, which `listening.build` has filled.
"""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
import listening


class Captured(list):
    """What is heard of captures, which refuse some of it; a program of minutes makes too much."""

    def append(self, event):
        if event["capturing"]:
            super().append(event)


listener = listening.connect(os.environ["ULMFIT_FAST_LISTENING"])
listener.events = Captured()
import programs  # noqa: E402

programs.stand_in()
listener.__enter__()
