"""Keep freed memory in the process: on Linux it makes training on the CPU up to twice as fast."""

import ctypes
import functools
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed memory instead of giving it back to the kernel, once a process.

    Otherwise every large activation is mapped, faulted in page by page and unmapped again, for each batch anew.

    Returns:
        True where it took effect; False on other systems, where nothing is changed.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
