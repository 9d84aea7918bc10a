"""The file of text vectors: what is put is found, by several processes, whole or not at all."""

import multiprocessing
import sqlite3

import numpy as np
import pytest

from recbole_llmd.errors import OutputError
from recbole_llmd.llm.text_cache import AT_ONCE, TextCache


def vectors_of(numbers):
    return {b"%d" % n: np.float32([n, n / 3]) for n in numbers}


def test_what_is_put_is_found_and_nothing_else(workdir):
    cache, many = TextCache(workdir / "deep" / "texts.sqlite"), vectors_of(range(2 * AT_ONCE + 3))
    assert cache.get(list(many)) == {}
    cache.put(many)
    found = TextCache(cache.path).get([*many, b"unknown"])
    assert list(map(bytes, sorted(found))) == sorted(many)
    assert all(np.array_equal(found[key], vector) for key, vector in many.items())


def test_what_is_there_stays(workdir):
    cache = TextCache(workdir / "texts.sqlite")
    cache.put(vectors_of([1]))
    cache.put({b"1": np.float32([7, 7]), **vectors_of([2])})
    assert cache.get([b"1", b"2"])[b"1"].tolist() == [1, np.float32(1 / 3)] and len(cache.get([b"1", b"2"])) == 2


def put_many(path, first):
    for n in range(first, first + 40):
        TextCache(path).put(vectors_of([n]))


def test_two_processes_write_at_once(workdir):
    path, context = workdir / "texts.sqlite", multiprocessing.get_context("spawn")
    processes = [context.Process(target=put_many, args=(path, first)) for first in (0, 40)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(TextCache(path).get([b"%d" % n for n in range(80)])) == 80


def test_a_put_that_fails_leaves_nothing(workdir):
    cache = TextCache(workdir / "texts.sqlite")
    cache.put(vectors_of([1]))
    with pytest.raises(OutputError):
        cache.put({b"2": np.float32([1]), 3.5j: np.float32([2])})  # SQLite has no complex numbers
    assert set(cache.get([b"1", b"2"])) == {b"1"}


def test_a_file_that_is_no_cache_is_refused(workdir):
    (workdir / "texts.sqlite").write_text("something else, long enough to be read as the head of a database" * 20)
    for act in (lambda cache: cache.get([b"1"]), lambda cache: cache.put(vectors_of([1]))):
        with pytest.raises(
            OutputError, match=r"texts\.sqlite: .*not a database.*Delete the file if it is broken, or set"
        ):
            act(TextCache(workdir / "texts.sqlite"))


def test_a_file_that_another_process_holds_is_named(workdir, monkeypatch):
    monkeypatch.setattr("recbole_llmd.llm.text_cache.WAIT", 0.0)
    cache = TextCache(workdir / "texts.sqlite")
    cache.put(vectors_of([1]))
    holder = sqlite3.connect(cache.path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OutputError, match=r"database is locked.*llm_cache_dir"):
        cache.put(vectors_of([2]))
    holder.close()


def test_a_folder_in_its_place_is_refused(workdir):
    (workdir / "texts.sqlite").mkdir()
    with pytest.raises(OutputError, match="this is a folder"):
        TextCache(workdir / "texts.sqlite").put(vectors_of([1]))
