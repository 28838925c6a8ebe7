"""The bytes of a feature file: Parquet as pyarrow would lay it out, but made and recognised without it.

Parquet keeps a list column as its numbers in one row (PLAIN: their own bytes) with a repetition and a definition level
for each number. For lists that are all of length D and never null those levels are the same in every page, yet
computing and decoding them is most of pyarrow's time, several times that of copying the numbers. Here they are a
constant: a page is ``page_header(...) + levels(...)`` and the numbers. All else stays ordinary Parquet.
"""

import base64
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from andscale.store import thrift
from andscale.store.parquet import ROW_GROUP_ROWS, schema_metadata

MAGIC = b"PAR1"
# small enough for a processor's cache between its uses, large enough that Python's share of the time stays small
PAGE_BYTES = 1 << 22
_PLAIN, _RLE = 0, 3
_INT64, _FLOAT, _FIXED_LEN_BYTE_ARRAY = 2, 4, 7
_REQUIRED, _REPEATED = 0, 2


class Chunk(NamedTuple):
    """One column of one row group: where it starts in the file, and its length, pages' headers included."""

    offset: int
    num_bytes: int


class RowGroup(NamedTuple):
    """What the footer says of a row group; ``ids`` are the smallest and the largest sample id."""

    num_rows: int
    ids: tuple[int, int]
    sample_id: Chunk
    feature: Chunk


def rows_per_page(row_bytes: int) -> int:
    """How many rows a page holds: PAGE_BYTES of numbers, and never more than a row group."""
    return min(max(PAGE_BYTES // row_bytes, 1), ROW_GROUP_ROWS)


def as_bytes(values: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array where they are, as PLAIN stores them: little-endian, as all our machines."""
    return memoryview(values.reshape(-1).view(np.uint8).data)


@lru_cache(maxsize=16)
def levels(num_rows: int, dim: int) -> bytes:
    """Repetition and definition levels of a page of ``num_rows`` lists of ``dim`` numbers, none null.

    Repetition is 0 at the first number of a row and 1 at the others: eight bits and a run a row, or all bits packed
    where D is no multiple of eight. Definition is 1 everywhere, one run.
    """
    if dim > 8 and dim % 8 == 0:
        repetition = (b"\x03\xfe" + thrift.varint((dim - 8) << 1) + b"\1") * num_rows
    else:
        first = np.ones((num_rows, dim), np.uint8)
        first[:, 0] = 0
        bits = np.packbits(first.reshape(-1), bitorder="little").tobytes()
        repetition = thrift.varint(len(bits) << 1 | 1) + bits
    run = thrift.varint(num_rows * dim << 1) + b"\1"
    return b"".join(len(part).to_bytes(4, "little") + part for part in (repetition, run))


@lru_cache(maxsize=64)
def _around_crc(num_values: int, num_bytes: int) -> tuple[bytes, bytes]:
    """What stands before and after the CRC in a page's header."""
    sizes = {1: thrift.i32(0), 2: thrift.i32(num_bytes), 3: thrift.i32(num_bytes)}
    counts = thrift.struct({1: thrift.i32(num_values), 2: thrift.i32(_PLAIN), 3: thrift.i32(_RLE), 4: thrift.i32(_RLE)})
    whole = thrift.struct({**sizes, 4: thrift.i32(0), 5: counts}).data
    # the byte that ends a struct of the first three fields is here the one that announces the CRC
    place = len(thrift.struct(sizes).data)
    return whole[:place], whole[place + 1 :]


def page_header(num_values: int, num_bytes: int, crc: int) -> bytes:
    """The header of an uncompressed PLAIN page.

    Args:
        num_values: numbers in the page.
        num_bytes: of levels and numbers.
        crc: CRC-32 of levels and numbers, unsigned.
    """
    before, after = _around_crc(num_values, num_bytes)
    return before + thrift.i32(crc - (1 << 32) if crc >= 1 << 31 else crc).data + after


def parse_page_header(start: bytes, num_values: int, num_bytes: int) -> tuple[int, int] | None:
    """The length of the header that ``start`` begins with, and its CRC.

    None unless the header is byte for byte what ``page_header`` makes of these arguments and some CRC: nothing else is
    looked for, so nothing can be misread.
    """
    before, _ = _around_crc(num_values, num_bytes)
    field = start[len(before) : len(before) + 5]
    length = next((i + 1 for i, byte in enumerate(field) if byte < 0x80), 0)
    zigzag = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(field[:length]))
    crc = (zigzag >> 1 ^ -(zigzag & 1)) & 0xFFFF_FFFF
    header = page_header(num_values, num_bytes, crc)
    return (len(header), crc) if start.startswith(header) else None


def footer(groups: list[RowGroup], dim: int, dtype: np.dtype[Any], kind: str) -> bytes:
    """All that follows the pages: the file's metadata, their length, the magic number.

    Args:
        groups: the row groups in the order of the file.
        dim: D.
        dtype: float32 or float16.
        kind: stored as ``andscale.kind``.
    """
    metadata = {**schema_metadata(kind), b"ARROW:schema": base64.b64encode(_arrow_schema(dim, dtype, kind))}
    pairs = [thrift.struct({1: thrift.binary(key), 2: thrift.binary(text)}) for key, text in metadata.items()]
    row_groups = [_row_group(number, group, dim, dtype) for number, group in enumerate(groups)]
    order = thrift.struct({1: thrift.struct({})})
    data = thrift.struct(
        {
            1: thrift.i32(2),
            2: thrift.listing(_schema(dtype)),
            3: thrift.i64(sum(group.num_rows for group in groups)),
            4: thrift.listing(row_groups) if row_groups else thrift.empty_list(),
            5: thrift.listing(pairs),
            6: thrift.binary(b"andscale"),
            7: thrift.listing([order, order]),
        }
    ).data
    return data + len(data).to_bytes(4, "little") + MAGIC


def _schema(dtype: np.dtype[Any]) -> list[thrift.Encoded]:
    """The schema's elements, depth first: 1 type, 2 type length, 3 repetition, 4 name, 5 children, 6 and 10 meaning."""
    empty, required = thrift.struct({}), thrift.i32(_REQUIRED)
    name = {text: thrift.binary(text) for text in (b"schema", b"sample_id", b"feature", b"list", b"element")}
    if dtype == np.float16:
        number = {1: thrift.i32(_FIXED_LEN_BYTE_ARRAY), 2: thrift.i32(2), 3: required, 4: name[b"element"]}
        number[10] = thrift.struct({15: empty})  # FLOAT16
    else:
        number = {1: thrift.i32(_FLOAT), 3: required, 4: name[b"element"]}
    is_list = {6: thrift.i32(3), 10: thrift.struct({3: empty})}
    elements: list[dict[int, thrift.Encoded]] = [
        {3: required, 4: name[b"schema"], 5: thrift.i32(2)},
        {1: thrift.i32(_INT64), 3: required, 4: name[b"sample_id"]},
        {3: required, 4: name[b"feature"], 5: thrift.i32(1), **is_list},
        {3: thrift.i32(_REPEATED), 4: name[b"list"], 5: thrift.i32(1)},
        number,
    ]
    return [thrift.struct(element) for element in elements]


def _row_group(number: int, group: RowGroup, dim: int, dtype: np.dtype[Any]) -> thrift.Encoded:
    smallest, largest = (thrift.binary(int(i).to_bytes(8, "little", signed=True)) for i in group.ids)
    statistics = thrift.struct({3: thrift.i64(0), 5: largest, 6: smallest})
    physical = _FIXED_LEN_BYTE_ARRAY if dtype == np.float16 else _FLOAT
    num_bytes = group.sample_id.num_bytes + group.feature.num_bytes
    return thrift.struct(
        {
            1: thrift.listing(
                [
                    _column(group.sample_id, _INT64, (b"sample_id",), group.num_rows, {12: statistics}),
                    _column(group.feature, physical, (b"feature", b"list", b"element"), group.num_rows * dim, {}),
                ]
            ),
            2: thrift.i64(num_bytes),
            3: thrift.i64(group.num_rows),
            5: thrift.i64(group.sample_id.offset),
            6: thrift.i64(num_bytes),
            7: thrift.i16(number),
        }
    )


def _column(
    chunk: Chunk, physical: int, path: tuple[bytes, ...], num_values: int, statistics: dict[int, thrift.Encoded]
) -> thrift.Encoded:
    metadata = {
        1: thrift.i32(physical),
        2: thrift.listing([thrift.i32(_PLAIN), thrift.i32(_RLE)]),
        3: thrift.listing([thrift.binary(name) for name in path]),
        4: thrift.i32(0),  # no compression
        5: thrift.i64(num_values),
        6: thrift.i64(chunk.num_bytes),
        7: thrift.i64(chunk.num_bytes),
        9: thrift.i64(chunk.offset),
    }
    return thrift.struct({2: thrift.i64(0), 3: thrift.struct({**metadata, **statistics})})


def _arrow_schema(dim: int, dtype: np.dtype[Any], kind: str) -> bytes:
    """Lets Arrow readers give fixed-size lists, which Parquet itself does not have."""
    import pyarrow as pa

    item = pa.field("item", pa.from_numpy_dtype(dtype), nullable=False)
    fields = [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("feature", pa.list_(item, dim), nullable=False),
    ]
    serialized: bytes = pa.schema(fields, metadata=schema_metadata(kind)).serialize().to_pybytes()
    return serialized
