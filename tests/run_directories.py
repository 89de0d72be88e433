"""What a run has left, to be compared to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open


def contents(out: Path) -> dict[str, Any]:
    """Everything that a run has left, without wall times."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if path.suffix in (".json", ".jsonl") and path.name != "origin.json":
            records = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in r.items() if k != "wall_seconds"} for r in records]
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found[name] = {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}  # noqa: SIM118
        elif path.name != "origin.json":
            found[name] = path.read_text()
    return found
