import pytest


@pytest.fixture
def folder(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    pytest.importorskip("datasets")
    (tmp_path / "corpus").mkdir()
    table = pyarrow.table(
        {
            "text": ["alpha " * 20, None, "βeta " * 20],
            "number": [1, 2, 3],
            "code": ["x" * 50] * 3,
        }
    )
    parquet.write_table(table, tmp_path / "corpus" / "train.parquet")
    return tmp_path / "corpus"
