"""Compiling native code on first use: once, whole or not at all, with a sentence where it cannot be done."""

import ctypes
import multiprocessing
import os
import re
from pathlib import Path

import pytest

from vantage.ops import build

SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return %d; }\n'

needs_compiler = pytest.mark.skipif(build.cxx_compiler() is None, reason="no C++ compiler on this machine")


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A kernels/ folder with one op, and an empty cache."""
    (tmp_path / "kernels/thing").mkdir(parents=True)
    (tmp_path / "kernels/thing/thing.cpp").write_text(SOURCE % 41)
    monkeypatch.setattr(build, "KERNELS", tmp_path / "kernels")
    monkeypatch.setenv("VANTAGE_CACHE", str(tmp_path / "cache"))
    build.load_cpu.cache_clear()
    yield tmp_path / "kernels/thing"
    build.load_cpu.cache_clear()


@needs_compiler
def test_builds_once_and_again_when_a_source_changes(kernels):
    first = build.load_cpu("thing")
    assert ctypes.CDLL(str(first)).answer() == 41
    written = first.stat().st_mtime_ns
    build.load_cpu.cache_clear()
    assert build.load_cpu("thing") == first
    assert first.stat().st_mtime_ns == written
    (kernels / "thing.cpp").write_text(SOURCE % 42)
    build.load_cpu.cache_clear()
    second = build.load_cpu("thing")
    assert second != first
    assert ctypes.CDLL(str(second)).answer() == 42


@needs_compiler
def test_a_header_is_part_of_the_key(kernels):
    (kernels / "value.h").write_text("#define VALUE 1\n")
    before = build.load_cpu("thing")
    (kernels / "value.h").write_text("#define VALUE 2\n")
    build.load_cpu.cache_clear()
    assert build.load_cpu("thing") != before


@needs_compiler
def test_a_source_that_does_not_compile_is_reported_and_leaves_nothing(kernels):
    (kernels / "thing.cpp").write_text("int answer() { return missing; }\n")
    with pytest.raises(build.BuildError, match=r"thing: .* failed: .*missing.*whole output: (.*\.log)") as error:
        build.load_cpu("thing")
    report = re.search(r"whole output: (.*?\.log)", str(error.value)).group(1)
    assert "missing" in Path(report).read_text()
    assert not [name for name in os.listdir(os.path.dirname(report)) if name.endswith((".so", ".tmp"))]


def test_without_a_compiler(kernels, monkeypatch):
    monkeypatch.setattr(build, "cxx_compiler", lambda: None)
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler was found .* install g\+\+ or use another backend"):
        build.load_cpu("thing")


@needs_compiler
def test_without_sources(kernels):
    (kernels / "thing.cpp").unlink()
    with pytest.raises(build.BuildError, match=r"holds no .*cpp source; run from a checkout of the project"):
        build.load_cpu("thing")


@needs_compiler
def test_a_cache_that_cannot_be_written(kernels, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VANTAGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match=r"cannot write .* set VANTAGE_CACHE to a folder"):
        build.load_cpu("thing")


def _build_slowly(folder, starts):
    """Stands for a compiler: writes down that it ran, and takes its time."""

    def command(output):
        with open(starts, "a") as file:
            file.write("started\n")
        return ["sh", "-c", f"sleep 0.3; echo whole > {output}"]

    build.build("thing", folder / "thing.so", command)
    assert (folder / "thing.so").read_text() == "whole\n"


def test_processes_that_build_the_same_library_wait_for_the_first(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_build_slowly, args=(tmp_path, tmp_path / "starts")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "starts").read_text() == "started\n"
