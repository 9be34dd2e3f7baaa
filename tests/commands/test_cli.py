"""The command line, in this process: what it prints and the exit status it gives."""

import argparse
import json

import pytest

import deepclust_ext
from deepclust_ext.__main__ import main
from deepclust_ext.commands import demo
from deepclust_ext.commands.info import collect_info, format_info


def test_info_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out == format_info(collect_info()) + "\n"


def test_info_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == collect_info()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == deepclust_ext.__version__ + "\n"


@pytest.mark.parametrize("arguments", [[], ["cluster"], ["info", "--colour"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: deepclust-ext" in capsys.readouterr().err


def test_demo_gets_its_arguments_and_gives_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: argparse.Namespace) -> int:
        assert callable(arguments.run)
        return 7

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo"]) == 7


def test_an_expected_failure_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise OSError("no such folder: images")

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "deepclust-ext: no such folder: images\n"
