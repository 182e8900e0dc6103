"""pandas DataFrames as datasets: each column is an array."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from dynloader import ArrayDataset, DataLoader, Full

pandas = pytest.importorskip("pandas")


def frame() -> Any:
    """Return columns of several dtypes, with an index that differs from the row numbers."""
    columns = {"x": np.arange(6.0), "y": np.arange(6) * 10, "z": np.arange(6) % 2 == 0}
    return pandas.DataFrame(columns, index=[5, 4, 3, 2, 1, 0])


def test_each_column_is_an_array() -> None:
    dataset = ArrayDataset(frame())
    assert len(dataset) == 6
    sample = dataset[4]
    assert {name: value.item() for name, value in sample.items()} == {"x": 4.0, "y": 40, "z": True}
    assert [value.dtype for value in sample.values()] == [torch.float64, torch.int64, torch.bool]
    loader = DataLoader(dataset, 4, policy=Full(), return_index=True)
    assert loader.gather_mode == "host arrays"
    for batch in loader:
        assert torch.equal(batch["x"], batch["index"].double())
        assert torch.equal(batch["y"], batch["index"] * 10)


def test_a_series_is_an_array() -> None:
    table = frame()
    single = ArrayDataset(table["y"])
    assert single[3].tolist() == 30
    pair = ArrayDataset(torch.eye(6), table["y"])
    assert pair[3][1].tolist() == 30
    named = ArrayDataset({"image": torch.eye(6), "label": table["y"]})
    assert named[3]["label"].tolist() == 30
    nullable = ArrayDataset(pandas.Series([1, 2, 3], dtype="Int64"))
    assert nullable[2].tolist() == 3


@pytest.mark.parametrize(
    "table",
    [
        pandas.DataFrame(np.arange(12.0).reshape(6, 2)),  # each column is strided
        pandas.DataFrame(np.arange(12.0).reshape(6, 2))[::-1],
        pandas.DataFrame({0: np.arange(6), 1: np.arange(6)}).iloc[::2],
    ],
)
def test_rows_are_those_of_the_table_in_its_order(table: Any) -> None:
    dataset = ArrayDataset(table)
    loader = DataLoader(dataset, len(table), shuffle=False, policy=Full())
    assert loader.gather_mode == "host arrays"
    (batch,) = loader
    for name in table.columns:
        assert batch[name].tolist() == table[name].tolist()


def test_the_table_stays_as_it_was() -> None:
    table = frame()
    before = table.copy(deep=True)
    list(DataLoader(ArrayDataset(table), 2, policy=Full()))
    pandas.testing.assert_frame_equal(table, before)


def twice() -> Any:
    table = pandas.DataFrame(np.eye(3), columns=["a", "b", "a"])
    return table


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ArrayDataset(frame().assign(name=list("abcdef"))),
            TypeError,
            "name must hold numbers, got a Series of dtype",
        ),
        (
            lambda: ArrayDataset(pandas.Series(["a", 1], dtype=object)),
            TypeError,
            "array 0 must hold numbers, got a Series of dtype object: drop it, or pass its",
        ),
        (
            lambda: ArrayDataset(pandas.DataFrame({"when": pandas.to_datetime(["2020", "2021"])})),
            TypeError,
            "when must have a dtype and strides that torch supports, got datetime64",
        ),
        (
            lambda: ArrayDataset(frame(), torch.arange(6)),
            TypeError,
            "array 0 must be a tensor or a NumPy array, got DataFrame: pass it as the only arg",
        ),
        (
            lambda: ArrayDataset(twice()),
            ValueError,
            "columns must have distinct names, got ['a', 'b'",
        ),
        (
            lambda: ArrayDataset(frame()[:0]),
            ValueError,
            "arrays must have the same length, at least 1",
        ),
        (
            lambda: ArrayDataset(frame()[[]]),
            ValueError,
            "arrays must hold at least one array, got no",
        ),
    ],
)
def test_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()
