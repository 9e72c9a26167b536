"""Ids: from the log's own ids to dense indices, and back."""

import numpy as np
import pytest

from hyenarec.data.ids import Ids
from hyenarec.errors import UserError

STRINGS = ["zebra", "Ä", "", "ant", "ant ", "日本", "\U0001f600", "10", "9"]
INTEGERS = [7, -3, 2**62, 0, 42]


@pytest.mark.parametrize("values", [STRINGS, INTEGERS, [-(2**63), 2**63 - 1], ["one"]])
def test_encode_and_decode_are_inverse_and_sorted(values: list[int | str]) -> None:
    ids = Ids.from_values(values + values)
    assert len(ids) == len(values)
    assert ids.decode(range(len(ids))) == sorted(values)  # type: ignore[type-var]
    assert ids.decode(ids.encode(values)) == values
    assert ids.encode(values).dtype == np.int32


@pytest.mark.parametrize("values", [STRINGS, INTEGERS])
def test_arrays_round_trip(values: list[int | str]) -> None:
    arrays = Ids.from_values(values).to_arrays()
    assert all(array.dtype != object for array in arrays.values())
    again = Ids.from_arrays({name: array.copy() for name, array in arrays.items()})
    assert again.decode(range(len(again))) == sorted(values)  # type: ignore[type-var]
    assert again.integers == isinstance(values[0], int)


def test_many_strings_against_a_dictionary() -> None:
    rng = np.random.default_rng(0)
    values = [f"{rng.integers(10**9):x}" for _ in range(3000)]
    ids = Ids.from_values(np.array(values))
    expected = {value: index for index, value in enumerate(sorted(set(values)))}
    asked = [*values, "", "zzzz", "~", "0"]
    assert ids.find(asked).tolist() == [expected.get(value, -1) for value in asked]


def test_typed_text_finds_integers_and_integers_find_text() -> None:
    assert Ids.from_values(INTEGERS).find(["42", " 7 ", "-3", "4_2", "x", "4.0", str(2**70), True]).tolist() == [
        *(3, 2, 0),
        *[-1] * 5,
    ]
    assert Ids.from_values(["42", "7"]).find([42, 7, 8]).tolist() == [0, 1, -1]
    assert Ids.from_values(INTEGERS).find(np.array([42, 43])).tolist() == [3, -1]
    assert Ids.from_values(list(np.array([42, 43]))).find(list(np.array([43, 44]))).tolist() == [1, -1]
    assert Ids.from_values(INTEGERS).find(["9" * 5000]).tolist() == [-1]


@pytest.mark.parametrize(
    ("values", "asked", "message"),
    [
        (INTEGERS, [42, 5, 6], "unknown item 5: the 5 known ones are integers from -3 to 4611686018427387904"),
        (INTEGERS, np.array([5]), "unknown item 5: the 5 known ones are integers from -3 to 4611686018427387904"),
        (INTEGERS, ["jazz"], "unknown item 'jazz': the 5 known ones are integers from -3 to 4611686018427387904"),
        (["a", "b"], ["a", "c"], "unknown item 'c': the 2 known ones are strings from 'a' to 'b'"),
        (["a", "b"], ["\udcff"], r"unknown item '\udcff': the 2 known ones are strings from 'a' to 'b'"),
        ([], [1], "unknown item 1: there are no ids"),
    ],
)
def test_the_first_unknown_id_is_named(values: list[int | str], asked: list[int | str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Ids.from_values(values).encode(asked, "item")
    assert str(caught.value) == message


@pytest.mark.parametrize("index", [-1, 5])
def test_decode_refuses_an_index_outside(index: int) -> None:
    with pytest.raises(IndexError):
        Ids.from_values(INTEGERS).decode([0, index])


@pytest.mark.parametrize("values", [[1, "a"], [1.5], [True, "a"], [None]])
def test_other_values_are_refused(values: list[int | str]) -> None:
    with pytest.raises(TypeError, match="all integers or all strings"):
        Ids.from_values(values)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"values": np.zeros(3, np.int32)},
        {"values": np.zeros((3, 1), np.int64)},
        {"utf8": np.zeros(3, np.uint8)},
        {"utf8": np.zeros(3, np.uint8), "offsets": np.array([0, 2])},
        {"utf8": np.zeros(3, np.uint8), "offsets": np.array([1, 3])},
        {"utf8": np.zeros(0, np.uint8), "offsets": np.zeros(0, np.int64)},
    ],
)
def test_wrong_arrays_are_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="ids: "):
        Ids.from_arrays(arrays)
