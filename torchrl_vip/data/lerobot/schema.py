"""How LeRobot describes a column: in info.json, in Arrow, and in the parquet's "huggingface" metadata.

=================  ==================  =========================  ===============================
values             info.json's shape   Arrow                      huggingface
=================  ==================  =========================  ===============================
``[T]``, [T, 1]    [1]                 the number                 Value
``[T, D]``         [D]                 fixed-size list of D       Sequence of length D
strings ``[T]``    [1]                 string                     Value
=================  ==================  =========================  ===============================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

Feature = dict[str, Any]
"""An entry of info.json's "features"."""


def need_pyarrow() -> Any:
    """The package pyarrow.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet  # an attribute from here on
    except ImportError as error:
        raise ImportError(
            'parquet files are written by pyarrow: pip install "torchrl-vip[label]"'
        ) from error
    return pyarrow


def as_column(name: str, values: Any) -> np.ndarray:
    """A column's values: ``[T]``, or ``[T, D]`` with D > 1; text is of dtype object.

    Raises:
        ValueError: another shape or dtype.
    """
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind in "UO" and all(isinstance(text, str) for text in array.flat):
        array = array.astype(object)
    elif array.dtype.kind not in "biuf":
        raise ValueError(f"column {name!r} is of {array.dtype}: wanted numbers, booleans or text.")
    if array.ndim not in (1, 2) or (
        array.ndim == 2 and (array.dtype == object or not array.shape[1])
    ):
        raise ValueError(f"column {name!r} has shape {list(array.shape)}: wanted [T] or [T, D].")
    return array


def feature_of(column: np.ndarray, names: list[str] | None = None) -> Feature:
    """The entry in info.json of a column as of :func:`as_column`."""
    dtype = "string" if column.dtype == object else str(column.dtype)
    return {"dtype": dtype, "shape": list(column.shape[1:] or (1,)), "names": names}


def huggingface_feature(feature: Feature) -> dict[str, Any]:
    """The same in the words of the package datasets; both its old and its new versions read these."""
    value = {"dtype": feature["dtype"], "_type": "Value"}
    (size,) = feature["shape"]
    return value if size == 1 else {"feature": value, "length": size, "_type": "Sequence"}


def arrow_column(column: np.ndarray) -> pyarrow.Array:
    """A column as of :func:`as_column` in Arrow."""
    pa = need_pyarrow()
    if column.ndim == 1:
        return pa.array(column)
    flat = pa.array(np.ascontiguousarray(column).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, column.shape[1])


def describe(schema: pyarrow.Schema, features: Mapping[str, dict[str, Any]]) -> pyarrow.Schema:
    """The schema with these columns, name -> :func:`huggingface_feature`, added to its metadata."""
    metadata = dict(schema.metadata or {})
    said = json.loads(metadata.get(b"huggingface", b"{}"))
    said.pop("fingerprint", None)  # of the table without them
    said.setdefault("info", {}).setdefault("features", {}).update(features)
    return schema.with_metadata(metadata | {b"huggingface": json.dumps(said).encode()})


def put_column(
    table: pyarrow.Table, name: str, values: pyarrow.Array, feature: dict[str, Any]
) -> pyarrow.Table:
    """The table with a column in the place of the one of that name, or at its end.

    "huggingface" metadata is kept up where there is some; a part of it would be worse than none.
    """
    column = need_pyarrow().field(name, values.type), values
    place = table.schema.get_field_index(name)
    table = table.append_column(*column) if place < 0 else table.set_column(place, *column)
    if b"huggingface" in (table.schema.metadata or {}):
        metadata = describe(table.schema, {name: feature}).metadata
        table = table.replace_schema_metadata(metadata)
    return table
