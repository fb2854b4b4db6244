"""A lock between the threads of one process that does not outlive a fork."""

from __future__ import annotations

import os
import threading


class ThreadLock:
    """A reentrant lock. A forked process has its own: the thread that held it elsewhere is not there to let it go."""

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._lock, self._process = threading.RLock(), os.getpid()
        self._lock.acquire()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._lock.release()
