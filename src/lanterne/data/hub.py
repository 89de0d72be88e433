"""Data sets that the `datasets` library reads: of the Hugging Face hub, its cache, and folders in other layouts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lanterne.data.columns import Columns, Split, choose, split
from lanterne.data.quiet import quiet
from lanterne.errors import DataError

_PATIENCE = 2.5  # seconds for the first answer of the hub; a refusal must not take longer than five in all
_REFUSED = (401, 403, 404)
_TESTS = ("test", "validation", "valid", "val", "dev", "eval")


def read_hub(spec: str, wanted: Columns, hint: str = "") -> tuple[Split, Split | None]:
    """A data set of the hub, from the network where it answers, else from the cache of earlier runs.

    Args:
        spec: `"owner/name"`, or `"owner/name:configuration"`.
        wanted: the columns that the user names.
        hint: a sentence for the message that there is no such data set.

    Returns:
        The split to train on, and the one to judge by where there is one.

    Raises:
        DataError: a data set that is not there, or cannot be reached or read.
    """
    name, _, configuration = spec.partition(":")
    with _network(spec, hint) as reachable:
        import datasets

        if reachable():
            found = _asked(spec, lambda: datasets.load_dataset(name, configuration or None))
        else:
            found = _cached(spec, name, configuration, hint)
    return _splits(spec, found, wanted)


def read_folder(path: Path, wanted: Columns) -> tuple[Split, Split | None]:
    """A folder in a layout that `datasets` knows: one folder of images per class, or what `save_to_disk` wrote.

    Args:
        path: the folder.
        wanted: the columns that the user names.

    Raises:
        DataError: a layout that `datasets` does not know, or contents that cannot be used.
    """
    import datasets

    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    read = datasets.load_from_disk if saved else datasets.load_dataset
    with quiet():
        return _splits(str(path), _asked(str(path), lambda: read(str(path))), wanted)


@contextlib.contextmanager
def _network(spec: str, hint: str) -> Iterator[Callable[[], bool]]:
    """Asks the hub for a data set while something else is done; whether it was reached.

    The library by itself tries for half a minute, and a name server may take as long: hence a thread and a limit.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    problem: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().dataset_info(spec.partition(":")[0], timeout=_PATIENCE)
            problem.append(None)
        except Exception as error:  # whatever it is, the thread that waits has to hear of it
            problem.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()

    def reachable() -> bool:
        thread.join(_PATIENCE)
        error = problem[0] if problem else TimeoutError()
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code in _REFUSED
        if refused or isinstance(error, HFValidationError):
            raise DataError(
                f"There is no data set {spec!r}: no such path here, and none of that name that the Hugging Face hub "
                f"would give you. {hint}Correct the name; for a private or gated one, log in with 'hf auth login'."
            ) from error
        return error is None

    yield reachable


def _cached(spec: str, name: str, configuration: str, hint: str) -> Any:  # noqa: ANN401 - a DatasetDict, which has no types
    from datasets.packaged_modules.cache.cache import Cache

    try:
        with quiet():
            return Cache(
                repo_id=name,
                dataset_name=name.partition("/")[2],
                config_name=configuration or None,
                version="auto",
                hash="auto",
            ).as_dataset()
    except ValueError as error:
        if "in the cache" in str(error):
            raise DataError(
                f"The hub cannot be reached, and the cache does not say which configuration of {spec!r} to take "
                f"({_sentence(error)}). Name one that is there, as in '{name}:configuration'."
            ) from error
        raise DataError(
            f"There is no data set {spec!r}: no such path here, none in the cache, and the Hugging Face hub cannot be "
            f"reached (HF_HUB_OFFLINE is set, or there is no network). {hint}Correct the path, or load it once with "
            "network."
        ) from error


def _asked(spec: str, load: Callable[[], Any]) -> Any:  # noqa: ANN401 - a DatasetDict, which has no types
    try:
        return load()
    except Exception as error:  # what the readers of a dozen formats may raise is not written down anywhere
        repair = (
            f"Name one of them, as in '{spec}:configuration'."
            if "Config name is missing" in str(error)
            else "It is damaged, or in a layout that 'datasets' does not know: bring it as Parquet files."
        )
        raise DataError(f"{spec!r} cannot be read as a data set ({_sentence(error)}). {repair}") from error


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())


def _splits(where: str, found: Any, wanted: Columns) -> tuple[Split, Split | None]:  # noqa: ANN401
    parts = dict(found) if isinstance(found, dict) else {"train": found}
    train = "train" if "train" in parts else next(iter(parts)) if len(parts) == 1 else None
    if train is None:
        raise DataError(
            f"{where!r} has the splits {', '.join(parts)}, and none of them is called 'train'. Bring the one to train "
            "on as train.parquet and the one to judge by as test.parquet, in a folder."
        )
    test = next((name for name in _TESTS if name in parts and name != train), None)
    return _split(where, train, parts[train], wanted), None if test is None else _split(
        where, test, parts[test], wanted
    )


def _split(where: str, name: str, rows: Any, wanted: Columns) -> Split:  # noqa: ANN401
    from datasets.table import embed_table_storage

    where = f"{where}, split {name!r}"
    image, label = choose(where, rows.features.arrow_schema, wanted)
    chosen = [image, label] if wanted.owner is None else [image, label, wanted.owner]
    table = rows.select_columns(list(dict.fromkeys(chosen))).with_format("arrow")[:]
    return split(where, embed_table_storage(table), image, label, wanted.owner)
