"""What can go wrong, by whose hand.

```text
LanterneError
├── InputError          the user's mistake: says what, why, and what to write instead; exit status 2
│   ├── ConfigError     a key, a value, a name of the experiment
│   ├── DataError       a data set, a column, a partition
│   ├── FleetError      a device, a fleet file, a deadline
│   └── ModelError      a model that cannot be trained, cut or nested here
├── ProtocolError       an algorithm broke the protocol: its author's mistake
├── HandlerError        an algorithm's handler raised: its author's mistake
└── RunError            the machine failed (disk, memory): exit status 1, the run can be resumed
```
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LanterneError(Exception):
    """The base of everything that lanterne raises on purpose."""


class InputError(LanterneError):
    """The user's mistake: one message that says what is wrong, why, and what to write instead."""


class ConfigError(InputError):
    """A key, a value or a name of an experiment that lanterne does not understand."""


class DataError(InputError):
    """A data set that is missing or damaged, or a partition that cannot be made."""


class FleetError(InputError):
    """A device with impossible numbers, or a fleet that cannot do what is asked."""


class ModelError(InputError):
    """A model that cannot be trained, cut or nested here."""


class ProtocolError(LanterneError):
    """An algorithm asked for something that the protocol does not allow."""


class HandlerError(LanterneError):
    """An algorithm's handler raised; the cause is chained to it."""


class RunError(LanterneError):
    """The machine failed (a full disk, for one); what was finished is safe and the run can be resumed."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A sentence that offers the right word for a wrong one.

    Args:
        word: what the user wrote.
        choices: what could have been meant.

    Returns:
        `"Did you mean 'x'?"` where one choice is near, else the list of all choices.

    Examples:
        >>> nearest("slaf", ["salf", "drop"])
        "Did you mean 'salf'?"
        >>> nearest("?", ["salf", "drop"])
        'Choose from: drop, salf.'
    """
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Choose from: {', '.join(choices)}."
