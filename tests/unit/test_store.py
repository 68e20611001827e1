"""The stand-in cloud's database: whole records, ids never twice, nothing for other eyes."""

import multiprocessing
import stat
from pathlib import Path

import pytest

from rehearsal.store import FIRST_ID, Store, write_atomically


def test_a_record_comes_back_and_goes(tmp_path: Path) -> None:
    store = Store(tmp_path / "cloud")
    store.put("vpcs", 7, {"label": "a", "list": [1, None, True]})
    assert store.get("vpcs", 7) == {"label": "a", "list": [1, None, True]}
    store.remove("vpcs", 7)
    store.remove("vpcs", 7)
    assert store.get("vpcs", 7) is None
    assert store.all("vpcs") == {}


def test_records_are_listed_by_age(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in (10, 9, 100):
        store.put("vpcs", number, {})
    assert list(store.all("vpcs")) == [9, 10, 100]


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "cloud")
    store.put("machines", 1, {"root_keys": []})
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((store.folder / "machines" / "1.json").stat().st_mode) == 0o600


def test_an_id_of_a_removed_resource_is_not_given_again(tmp_path: Path) -> None:
    with Store(tmp_path).lock():
        first = Store(tmp_path).new_id()
        Store(tmp_path).put("vpcs", first, {})
        Store(tmp_path).remove("vpcs", first)
        assert (first, Store(tmp_path).new_id()) == (FIRST_ID, FIRST_ID + 1)


def _take_ids(folder: Path) -> list[int]:
    store, taken = Store(folder), []
    for _ in range(20):
        with store.lock():
            taken.append(store.new_id())
    return taken


def test_processes_do_not_get_the_same_id(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        taken = [number for numbers in pool.map(_take_ids, [tmp_path] * 3) for number in numbers]
    assert len(set(taken)) == 60


def test_a_failed_write_leaves_the_old_record_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"]
