"""What commands show on a terminal and hand to a pipe beside their results."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deepclust_ext.__main__ import main
from tests.forks import run_module
from tests.runs.runfolders import ROOT, make_run, start, write_images, write_recipe


def test_what_the_profiler_s_library_says_stays_off_the_terminal(tmp_path: Path) -> None:
    write_images(tmp_path / "images"), write_recipe(tmp_path)
    options = ["--recipe", "small.yaml", "--epochs", "1", "--profile", "--out", "run"]
    with start(["train", "images", *options], tmp_path) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "an epoch, mean of 1\n" in out
    assert not re.search(r"^\w+:\d{4}-", err, re.MULTILINE), err  # as in ERROR:2026-01-31


def test_a_profile_of_a_run_that_goes_on_is_of_its_own_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_run(tmp_path)
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(out), "--epochs", "3", "--profile"]) == 0
    assert "an epoch, mean of 1\n" in capsys.readouterr().out


def test_a_command_that_is_proposed_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make_run(tmp_path / "my runs")
    assert main(["train", str(tmp_path / "my runs" / "images"), "--clusters", "3", "--out", str(out)]) == 1
    assert f"`deepclust-ext train --resume --out '{out}'` continues the run" in capsys.readouterr().err


@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_who_has_read_enough_ends_a_command_in_silence(reader: str, tmp_path: Path) -> None:
    line = f"{sys.executable} -m deepclust_ext info | {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_names_that_are_no_text_are_printed(tmp_path: Path) -> None:
    write_images(tmp_path / "images", count=1)
    (tmp_path / "images" / b"\xff.txt".decode(errors="surrogateescape")).touch()
    done = run_module("deepclust_ext", "data", tmp_path / "images")
    assert done.returncode == 0, done.stderr
    assert "1 skipped, such as \\udcff.txt: no image by its name" in done.stdout
