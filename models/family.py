"""Processes that end together: one whose parent has gone ends itself.

Nobody can pass on a SIGKILL, and a process that lives on holds the port. So each child looks whether its parent is
still there. `PR_SET_PDEATHSIG` would do so on Linux alone, and it follows the parent's thread.
"""

import os
import signal
import threading
import time

PARENT_VARIABLE = "MU2NET_PARENT"  # holds the id of the process that started this one and is to outlive it
LOOK_S = 0.25  # between looks for the parent
GRACE_S = 3.0  # to end by SIGTERM before the process ends by force: a restart needs the port


def end_with_parent(parent: int, *, grace_s: float = GRACE_S) -> None:
    """Watch for the end of `parent`, from a thread: then this process gets SIGTERM, and is ended after `grace_s`.

    Also if `parent` ended before this call. Call it once in a process.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, name="family", daemon=True).start()
