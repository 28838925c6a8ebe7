"""The few forms of Thrift's compact protocol that Parquet's headers and footers are made of; writing only.

A value is encoded with its type, so that ``struct`` can put both into its field headers.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

_I16, _I32, _I64, _BINARY, _LIST, _STRUCT = 4, 5, 6, 8, 9, 12
_LONG_LIST = 15


class Encoded(NamedTuple):
    """A value's type code and its bytes."""

    type_code: int
    data: bytes


def i16(value: int) -> Encoded:
    """A 16-bit integer."""
    return Encoded(_I16, varint(_zigzag(value)))


def i32(value: int) -> Encoded:
    """A 32-bit integer, or an enum's value."""
    return Encoded(_I32, varint(_zigzag(value)))


def i64(value: int) -> Encoded:
    """A 64-bit integer."""
    return Encoded(_I64, varint(_zigzag(value)))


def binary(value: bytes) -> Encoded:
    """Bytes, or text in UTF-8."""
    return Encoded(_BINARY, varint(len(value)) + value)


def listing(items: Sequence[Encoded]) -> Encoded:
    """A list of one or more values of one type."""
    (type_code,) = {item.type_code for item in items}
    if len(items) < _LONG_LIST:
        header = bytes([len(items) << 4 | type_code])
    else:
        header = bytes([_LONG_LIST << 4 | type_code]) + varint(len(items))
    return Encoded(_LIST, header + b"".join(item.data for item in items))


def empty_list() -> Encoded:
    """A list of no structs."""
    return Encoded(_LIST, bytes([_STRUCT]))


def struct(fields: Mapping[int, Encoded]) -> Encoded:
    """A struct, or a union with its one field: field number -> value, numbers ascending by less than 16."""
    data, last = b"", 0
    for number, value in fields.items():
        assert 0 < number - last < 16, "a short field header holds a step of 1..15"
        data += bytes([(number - last) << 4 | value.type_code]) + value.data
        last = number
    return Encoded(_STRUCT, data + b"\0")


def varint(value: int) -> bytes:
    """An unsigned integer, seven bits a byte, the lowest first."""
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1
