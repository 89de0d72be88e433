import numpy as np
import pytest

from data.parquet_files import pictures, write


@pytest.fixture
def folder(tmp_path):
    """Twelve grey images to train on, four to judge by, without any Hugging Face metadata."""
    write(tmp_path / "train.parquet", image=pictures(12, 5, 4), label=np.arange(12) % 3)
    write(tmp_path / "test.parquet", image=pictures(4, 5, 4, seed=1), label=np.arange(4) % 3)
    return tmp_path
