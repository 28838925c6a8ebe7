import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from andscale.store.feature_pages import levels, page_header, parse_page_header
from andscale.store.features import write_features
from andscale.store.parquet import write_table


@pytest.mark.parametrize("crc", [0, 1, 63, 64, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xDEAD_BEEF])
def test_a_page_header_gives_its_length_and_checksum_back(crc):
    header = page_header(1 << 20, 4 << 20, crc)
    assert parse_page_header(header + b"\x15" * 20, 1 << 20, 4 << 20) == (len(header), crc)


def test_any_other_header_is_not_taken_for_ours():
    header = page_header(1000, 4100, 0x1234_5678)
    assert parse_page_header(header, 1001, 4100) is None
    assert parse_page_header(header, 1000, 4101) is None
    assert parse_page_header(b"", 1000, 4100) is None
    num_refused = 0
    for place in range(len(header)):
        assert parse_page_header(header[:place], 1000, 4100) is None
        changed = header[:place] + bytes([header[place] ^ 1]) + header[place + 1 :]
        parsed = parse_page_header(changed, 1000, 4100)
        num_refused += parsed is None
        if parsed is not None:  # another CRC
            assert changed == page_header(1000, 4100, parsed[1])
    assert num_refused == len(header) - 5


def _bits(data, count):
    """The values of a hybrid of runs and packed bits, decoded by the letter of the format; bit width 1."""
    values, place = [], 0
    while place < len(data):
        header = shift = 0
        while True:
            header |= (data[place] & 0x7F) << shift
            shift, place = shift + 7, place + 1
            if data[place - 1] < 0x80:
                break
        if header & 1:
            for byte in data[place : place + (header >> 1)]:
                values += [byte >> i & 1 for i in range(8)]
            place += header >> 1
        else:
            values += [data[place]] * (header >> 1)
            place += 1
    return values[:count]


@pytest.mark.parametrize(("num_rows", "dim"), [(1, 1), (3, 7), (5, 8), (2, 16), (9, 200), (1000, 3)])
def test_levels_say_where_rows_begin_and_that_nothing_is_null(num_rows, dim):
    data = levels(num_rows, dim)
    length = int.from_bytes(data[:4], "little")
    repetition, definition = data[4 : 4 + length], data[8 + length :]
    assert len(definition) == int.from_bytes(data[4 + length : 8 + length], "little")
    assert _bits(repetition, num_rows * dim) == ([0] + [1] * (dim - 1)) * num_rows
    assert _bits(definition, num_rows * dim) == [1] * (num_rows * dim)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_footer_says_what_arrows_own_would(tmp_path, dtype):
    features = np.tile(np.float32([1, 0, 0]), (70_000, 1))
    ids = np.arange(70_000)[::-1]
    write_features(tmp_path / "ours.parquet", ids, features, dtype)
    write_table(tmp_path / "arrows.parquet", {"sample_id": ids, "feature": features.astype(dtype)}, "memory")
    ours, arrows = (pq.ParquetFile(tmp_path / f"{name}.parquet") for name in ("ours", "arrows"))
    assert ours.schema_arrow.equals(arrows.schema_arrow, check_metadata=True)
    assert str(ours.schema).split("\n", 1)[1] == str(arrows.schema).split("\n", 1)[1]  # the first line is an address
    assert ours.metadata.num_row_groups == arrows.metadata.num_row_groups == 2
    for number in range(2):
        one, other = (file.metadata.row_group(number) for file in (ours, arrows))
        assert one.num_rows == other.num_rows
        assert one.column(0).statistics.to_dict() == other.column(0).statistics.to_dict()
        for column in range(2):
            for name in ("physical_type", "compression", "num_values", "path_in_schema", "has_dictionary_page"):
                assert getattr(one.column(column), name) == getattr(other.column(column), name), name
    assert ours.schema_arrow.field("feature").type.value_type == pa.from_numpy_dtype(dtype)
