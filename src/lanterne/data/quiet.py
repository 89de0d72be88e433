"""No progress bars and no warnings of a library, where they would say what is said better here."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence `datasets` and what is built on it; afterwards everything is as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets

        hidden = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            if not hidden:
                datasets.enable_progress_bars()
