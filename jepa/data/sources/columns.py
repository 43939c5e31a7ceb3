"""Columns of tables: found by their usual names, never by their position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jepa.config import InputError
from jepa.data.sources.splits import SPLIT_NAMES, looks_like_split, mentioned_splits, resemble_splits, split_of

__all__ = ["PATH_COLUMNS", "find_column", "find_image_column", "find_label_column", "split_columns", "split_rows"]

IMAGE_COLUMNS = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
"""Usual names of a column of encoded images."""
PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "file_path", "filepath"),
    *("image", "img", "image_path", "img_path", "imagepath", "image_name", "image_file"),
)
"""Usual names of a column of paths; the first settles it if a table has several."""
LABEL_COLUMNS = ("label", "labels", "class", "classes", "class_name", "target", "category", "fine_label")
"""Usual names of the column of labels; the first settles it if a table has several."""
SPLIT_COLUMNS = ("split", "splits", "partition", "subset", "set", "phase", "usage", "fold")
"""Usual names of the column of splits."""
SURE_SPLIT_COLUMNS = SPLIT_COLUMNS[:3]  # the values of the others may have nothing to do with splits
MAX_SPLIT_VALUES = 20  # a column with more different values is not examined for names of splits


def find_column(columns: Sequence[str], usual: Sequence[str], kind: str, source: object) -> str | None:
    """Return the column with one of the usual names, or None; case, spaces around and separators do not matter.

    Raises `InputError` if there are several and none has the first of the names.
    """
    found = [name for name in columns if key_of(name) in usual]
    settled = [name for name in found if key_of(name) == usual[0]]
    if len(settled or found) > 1:
        raise InputError(
            f"{source} has several columns that may contain the {kind}: {', '.join(found)}; name only one of them "
            f"'{usual[0]}'"
        )
    return next(iter(settled or found), None)


def key_of(column: str) -> str:
    """Return the name of a column in the form of the lists of usual names."""
    return "_".join(column.strip().casefold().replace("-", " ").replace("_", " ").split())


def find_image_column(schema: pa.Schema, source: object) -> str | None:
    """Return the column of encoded images: a struct (bytes, path) as on the Hub, or bytes with a usual name.

    Returns None if there is no such column. Raises `InputError` if there are several and none has a usual name.
    """
    usual = [name for name in schema.names if key_of(name) in IMAGE_COLUMNS]
    structs = [field.name for field in schema if _is_image_struct(field.type)]
    binary = [name for name in usual if _is_binary(schema.field(name).type)]
    candidates = structs + binary
    named = [name for name in candidates if name in usual]
    if candidates and usual and not named:  # an image column of another type, beside masks or thumbnails
        candidates = [*candidates, *usual]
    if not candidates or len(candidates) == 1:
        return str(candidates[0]) if candidates else None
    for key in IMAGE_COLUMNS:
        found = [name for name in named if key_of(name) == key]
        if len(found) == 1:
            return str(found[0])
    raise InputError(
        f"{source} has several columns that may contain the images: {', '.join(candidates)}; rename the right one to "
        "'image', or remove the others"
    )


def _is_image_struct(kind: pa.DataType) -> bool:
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return bool(is_struct and _is_binary(kind.field("bytes").type))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def find_label_column(
    columns: Iterable[str], source: object, class_columns: Sequence[str] = ()
) -> tuple[str | None, str]:
    """Return the column of labels, or None and the reason; `class_columns` are those of type `ClassLabel`."""
    names = list(columns)
    try:
        found = find_column(names, LABEL_COLUMNS, "labels", source)
    except InputError as error:
        return None, str(error)
    if found is None and len(class_columns) == 1:
        found = class_columns[0]
    if found is not None:
        return found, ""
    words = {"label", "labels", "class", "target", "category"}
    similar = [name for name in names if name in class_columns or words & set(key_of(name).split("_"))]
    if similar:
        return None, f"no column is called 'label'; rename the right one of {', '.join(similar)}"
    return None, "there is no column 'label'"


def split_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that may contain splits: all except numbers, bytes and structures without a usual name."""
    keys = {field.name: key_of(field.name) for field in schema}
    return [
        field.name
        for field in schema
        if _is_text(field.type) or keys[field.name] in SPLIT_COLUMNS or _is_flag(keys[field.name], ["0"])
    ]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def split_rows(table: pa.Table, source: object, used: Iterable[str | None] = ()) -> np.ndarray | None:
    """Return the split of each row of a table (N,), or None if no column contains splits.

    The columns in `used` are not examined. Raises `InputError` if a column of splits has a value that is not a split,
    or if a column looks like splits but has no usual name.
    """
    columns = [name for name in table.schema.names if name not in set(used)]
    values = {name: found for name in columns if (found := _few_values(table[name])) is not None}
    keys = {name: key_of(name) for name in columns}
    flags = [name for name in columns if _is_flag(keys[name], values.get(name))]
    split_columns = [name for name in columns if keys[name] in SURE_SPLIT_COLUMNS]
    split_columns = [name for name in split_columns if keys[name] == "split"] or split_columns
    similar = [name for name in columns if name in values and _are_splits(values[name], keys[name])]
    if not split_columns and (flags or len(similar) > 1 or any(keys[name] not in SPLIT_COLUMNS for name in similar)):
        raise InputError(
            f"{source} has columns that look like splits: {', '.join([*flags, *similar])}; name the right one 'split', "
            "with the values train, validation and test, and rename or remove the others"
        )
    if len(split_columns) > 1:
        raise InputError(f"{source} has several columns of splits: {', '.join(split_columns)}; remove all but one")
    if not (chosen := split_columns or similar):
        return None
    kind = table.schema.field(chosen[0]).type
    if pa.types.is_nested(kind) or _is_binary(kind):
        raise InputError(f"the column '{chosen[0]}' of {source} must contain train, validation or test, got {kind}")
    texts = table[chosen[0]].cast(pa.large_string()).combine_chunks().dictionary_encode()
    splits = [split_of(text) for text in texts.dictionary.to_pylist()]
    unknown = [text for text, split in zip(texts.dictionary.to_pylist(), splits, strict=True) if split is None]
    if unknown or texts.null_count:
        got = f"'{unknown[0]}'" if unknown else "an empty row"
        raise InputError(f"the column '{chosen[0]}' of {source} must contain train, validation or test, got {got}")
    rows: np.ndarray = np.array(splits, dtype=object)[texts.indices.to_numpy(zero_copy_only=False)]
    return rows


def _few_values(column: pa.ChunkedArray) -> list[str] | None:
    """Return the distinct values of a column as text, or None if there are many or they are not scalars."""
    if pa.types.is_nested(column.type) or _is_binary(column.type):
        return None
    unique = pc.unique(column)
    return (
        [str(value) for value in unique.to_pylist() if value is not None] if len(unique) <= MAX_SPLIT_VALUES else None
    )


def _are_splits(values: list[str], key: str) -> bool:
    """Return whether the values of a column are splits: some of them, or all of them if its name is unusual."""
    meant = [split_of(value) is not None or looks_like_split(value) for value in values]
    kinds = {split for value in values for split in mentioned_splits(value)}
    if key in SPLIT_COLUMNS:
        return any(meant) or resemble_splits(values)
    return bool(meant) and all(meant) and len(kinds) > 1


def _is_flag(key: str, values: list[str] | None) -> bool:
    """Return whether a column says yes or no to a split: is_train, test, is_valid."""
    words = [word for word in key.split("_") if word not in ("image", "img", "set", "in")]
    is_named = words[:1] == ["is"] and len(words) == 2 and words[1] in SPLIT_NAMES
    is_named |= len(words) == 1 and words[0] in SPLIT_NAMES and words[0] not in ("valid", "dev")
    return is_named and values is not None and {value.lower() for value in values} <= {"0", "1", "true", "false"}
