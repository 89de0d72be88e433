"""The family of errors is the one that is drawn, and a wrong word is answered with the right one."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanterne import errors
from lanterne.errors import LanterneError, nearest


def family(error: type[LanterneError], depth: int = 0) -> set[tuple[int, str, str]]:
    """Each class with its depth and its parent."""
    found = {(depth, error.__name__, error.__bases__[0].__name__)}
    return found.union(*(family(child, depth + 1) for child in error.__subclasses__()))


def test_the_drawing_shows_the_classes() -> None:
    drawn, parents = set(), ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"((?:[├└│]──? ?|│   |    )*)(\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            drawn.add((depth, match[2], parents[depth]))
            parents[depth + 1 :] = [match[2]]
    assert drawn == family(LanterneError)
    assert len(drawn) == 9


def test_every_mistake_of_the_user_is_an_input_error() -> None:
    inputs = {error.__name__ for error in errors.InputError.__subclasses__()}
    assert inputs == {"ConfigError", "DataError", "FleetError", "ModelError"}
    for other in (errors.ProtocolError, errors.HandlerError, errors.RunError):
        assert not issubclass(other, errors.InputError)


WORDS = ["salf", "drop", "fedavg", "fedbuff"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("slaf", "Did you mean 'salf'?"),
        ("fedavgg", "Did you mean 'fedavg'?"),
        ("fedbuf", "Did you mean 'fedbuff'?"),
        ("xyz", "Choose from: drop, fedavg, fedbuff, salf."),
        ("", "Choose from: drop, fedavg, fedbuff, salf."),
    ],
)
def test_the_nearest_word(word: str, expected: str) -> None:
    assert nearest(word, WORDS) == expected
    assert nearest(word, reversed(WORDS)) == expected  # the order of the choices says nothing


@given(st.text("abcdefs", max_size=6), st.sets(st.text("abcdefs", min_size=1, max_size=6), min_size=1, max_size=5))
def test_one_near_word_or_all_of_them(word: str, choices: set[str]) -> None:
    answer = nearest(word, choices)
    near = {c for c in choices if SequenceMatcher(None, c, word).ratio() >= 0.6}
    if near:
        best = max(SequenceMatcher(None, c, word).ratio() for c in near)
        assert answer in {f"Did you mean {c!r}?" for c in near if SequenceMatcher(None, c, word).ratio() == best}
    else:
        assert answer == f"Choose from: {', '.join(sorted(choices))}."
