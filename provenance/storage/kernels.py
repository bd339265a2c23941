"""Compiled kernels, kept on disk where that is possible and compiled anew where it is not.

numba keeps what it compiled beside the module, else in the user's cache folder, or where
NUMBA_CACHE_DIR says. Where none of these can be written (a read-only image without a home) it
refuses to define the function at all; a first call that takes seconds longer is no reason to.
"""

from __future__ import annotations

from typing import Any

from numba import njit


def kernel(**options: Any) -> Any:
    """`numba.njit` with a cache if there is a place for one.

    Parameters: options of njit, without `cache`. Raises what njit raises, but for a missing place.
    Cost: at the first call compilation, or reading what an earlier process compiled.
    """

    def compile_function(function: Any) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            return njit(**options)(function)

    return compile_function
