"""How memory that is done with is kept for what comes next.

glibc gives tensors of more than 32 MB back to the system as soon as they are freed, and the
system hands out its pages one by one, as zeros: for the logits of a language model that takes
several times as long as what is computed with them.
"""

import ctypes
import os
import sys
from contextlib import suppress

# Of <malloc.h>: the most blocks with a mapping of their own, and how much may lie free at the
# end before it is given back. Environment variables of the same meaning are for processes that
# this one starts.
_SETTINGS = (("MALLOC_MMAP_MAX_", -4, 0), ("MALLOC_TRIM_THRESHOLD_", -1, 2**31 - 1))


def keep_freed_memory() -> None:
    """For this process and those that it starts; who set one of these has decided.

    Nothing is computed otherwise. Only where the C library is glibc; others have no such need,
    or no such switch.
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name, parameter, value in _SETTINGS:
            if name not in os.environ and mallopt(parameter, value):
                os.environ[name] = str(value)
