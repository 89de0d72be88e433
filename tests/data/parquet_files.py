"""Small parquet files, as a user would have them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HUGGING_FACE = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b", "c", "d"]}}


def pictures(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def encoded(picture: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(out, kind)
    return out.getvalue()


def write(path: Path, features: dict | None = None, **columns) -> Path:
    """A parquet file; `image` may be a list of pictures, which become the structs of Hugging Face."""
    if isinstance(columns.get("image"), np.ndarray):
        columns["image"] = [{"bytes": encoded(each), "path": f"{row}.png"} for row, each in enumerate(columns["image"])]
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path
