"""A model, or a part of one, and its options in one word, as on the command line: `resnet18:norm=batch`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from torch import nn

from lanterne.errors import ModelError, nearest

Make = Callable[..., nn.Sequential]

_WIDTHS = re.compile(r"[1-9][0-9]*(-[1-9][0-9]*)*")
_NUMBER = re.compile(r"[1-9][0-9]*")


class Option(NamedTuple):
    """What can be set of a model: its key, its type and default as a user writes them, its meaning, its annotation."""

    name: str
    type: str
    default: str
    meaning: str
    annotation: Any


def options_of(make: Make) -> dict[str, Option]:
    """What can be set of a model: its keyword-only parameters; a meaning stands in the `Args` of the docstring.

    Args:
        make: what builds it.

    Examples:
        >>> from lanterne.models.zoo import MODELS
        >>> options_of(MODELS["resnet18"])["norm"][:3]
        ('norm', 'group | batch', 'group')
    """
    hints, text = get_type_hints(make), inspect.cleandoc(make.__doc__ or "")
    found = {}
    for each in inspect.signature(make).parameters.values():
        if each.kind is each.KEYWORD_ONLY:
            hint = hints[each.name]
            number = "a whole number" if hint is int else "whole numbers, as in 200-200"
            words = " | ".join(get_args(hint)) if get_origin(hint) is Literal else number
            default = "-".join(map(str, each.default)) if isinstance(each.default, tuple) else str(each.default)
            meaning = re.search(rf"^    {each.name}: (.*(?:\n     +.*)*)", text, re.MULTILINE)
            found[each.name] = Option(each.name, words, default, " ".join(meaning[1].split()) if meaning else "", hint)
    return found


def read_word(
    word: str, makers: Mapping[str, Make], what: str = "model", example: str = "resnet18:norm=batch"
) -> tuple[str, dict[str, Any]]:
    """The model that a word names, and its options.

    Args:
        word: a name, and behind a colon what differs from the defaults.
        makers: all models by name.
        what: they are called in messages.
        example: of a right word.

    Raises:
        ModelError: for a model, an option or a value that is not there.

    Examples:
        >>> from lanterne.models.zoo import MODELS
        >>> read_word("resnet18:norm=batch", MODELS), read_word("mlp:widths=300-100", MODELS)
        (('resnet18', {'norm': 'batch'}), ('mlp', {'widths': (300, 100)}))
    """
    name, colon, rest = word.partition(":")
    if name not in makers:
        raise ModelError(f"There is no {what} called {name!r}. {nearest(name, makers)}")
    known = options_of(makers[name])
    if colon and not known:
        raise ModelError(f"The {what} {name!r} has no options, so that {word!r} says too much. Write {name!r}.")
    found: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise ModelError(f"{word!r} cannot be read at {part!r}. Write for instance {example!r}.")
        if key not in known:
            raise ModelError(f"The {what} {name!r} has no option {key!r}. {nearest(key, known)}")
        if key in found:
            raise ModelError(f"{word!r} says twice what {key} is. Say it once.")
        found[key] = _value(what, key, value, known[key])
    return name, found


def _value(what: str, key: str, value: str, option: Option) -> object:
    hint = option.annotation
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ModelError(f"A {what}'s {key} is {value!r}, which is none. {nearest(value, get_args(hint))}")
        return value
    if hint is int:
        if not _NUMBER.fullmatch(value):
            raise ModelError(
                f"A {what}'s {key} is {value!r}, but has to be a whole number from 1 on. "
                f"Write for instance {key}={option.default}."
            )
        return int(value)
    if not _WIDTHS.fullmatch(value):
        raise ModelError(
            f"A {what}'s {key} is {value!r}, but has to be whole numbers from 1 on with hyphens between them. "
            f"Write for instance {key}=200-200."
        )
    return tuple(map(int, value.split("-")))
