"""Data workers: processes that end with their parent, however it ends."""

import multiprocessing
import os
import threading
from typing import Any

_THREAD = "end with parent"


def end_with_parent() -> None:
    """Make a worker process end as soon as its parent has ended; elsewhere, do nothing.

    The process also leaves the process group of its parent. Ctrl-C and SIGTERM that are sent to the
    group reach only the parent then, which may still need batches until it has saved a checkpoint.
    """
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == _THREAD for thread in threading.enumerate()):
        return
    os.setpgid(0, 0)

    def wait() -> None:
        parent.join()  # Returns when the parent's end of a pipe is closed, also after SIGKILL.
        os._exit(1)

    threading.Thread(target=wait, name=_THREAD, daemon=True).start()


class EndsWithParent:
    """A transform that makes the worker processes that unpickle it end with their parent.

    Grain's `ElasticIterator` takes no function to run when a worker starts.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        end_with_parent()
