"""What every process that Pulumi starts here needs: to end with its parent."""

import os
import threading
import time
from collections.abc import Callable

_SECONDS_BETWEEN_LOOKS = 0.5


def end_with_parent(parent: int, end: Callable[[], object] = lambda: os._exit(1)) -> None:
    """Call ``end`` soon after the process ``parent`` is gone: a parent that was killed tells nobody.

    A parent-death signal of the kernel would be tied to the one thread of the parent that started this process.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        end()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
