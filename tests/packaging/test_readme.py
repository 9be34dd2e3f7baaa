"""What the README shows runs."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import deepclust_ext
from deepclust_ext import ops, recipes
from deepclust_ext.__main__ import main, make_parser
from tests.helpers import suite_minutes
from tests.runs.runfolders import write_images

ROOT = Path(__file__).parents[2]
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))


def test_first_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example, *_) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert re.fullmatch(r"loss \d\.\d{4}, anchors whose negative carries no weight: \d+%\n", capsys.readouterr().out)


def test_the_order_is_that_of_use() -> None:
    titles = re.findall(r"^## (.*)$", README, flags=re.MULTILINE)
    assert titles == ["Try it", "Cluster my folder", "Methods", "Ops", "Benchmarks", "Install", "More"]


def test_a_folder_is_clustered_by_the_commands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos")
    (block,) = re.findall(r"## Cluster my folder\n\n```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines():
        program, command, *arguments = shlex.split(line, comments=True)
        assert program == "deepclust-ext"
        shorter = ["--epochs", "3"] if command == "train" else []
        assert main([command, *arguments, *shorter]) == 0
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == 60
    assert (tmp_path / "runs" / "photos" / "report.html").is_file()


def test_every_command_that_is_shown_has_these_options() -> None:
    parser, found = make_parser(), set()
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in (*pages, *(ROOT / "deepclust_ext" / "commands").glob("[!_]*.py")):
        text = page.read_text().replace("\\\n", " ")
        for call in re.findall(r"(?:deepclust-ext|-m deepclust_ext) ([a-z][^`\n>]*)", text):
            words = shlex.split(call, comments=True)
            if len(words) == 1 or re.search(r"\.\.\.|\b[A-Z]+\b", call):  # in a sentence, or with a gap to fill
                continue
            parsed = parser.parse_args(words)  # ends the test where it cannot
            recipe = getattr(parsed, "recipe", None)
            assert recipe is None or recipe in recipes.names(), f"{page.name}: {call}"
            found.add(words[0])
    assert found >= {"train", "cluster", "embed", "evaluate", "report", "export", "sweep", "boost", "demo", "data"}


def test_the_suite_says_how_long_it_takes() -> None:
    line = r"^\| `make test`, .* \| ([\d.]+) \| +\| [\d.]+ \| [\d.]+ \|$"
    (minutes,) = re.findall(line, CONTRIBUTING, flags=re.MULTILINE)
    assert suite_minutes(2) == pytest.approx(float(minutes), rel=0.2)
    assert suite_minutes(4) == suite_minutes(2) / 2


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_names_what_there_is() -> None:
    answer = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    shown = set(re.findall(r"make ([\w-]+)", "\n".join(line[:34] for line in answer.stdout.splitlines())))
    makefile = (ROOT / "Makefile").read_text()
    (ci_targets,) = re.findall(r"^ci_targets := (.*)$", makefile, flags=re.MULTILINE)
    assert {*ci_targets.split(), "setup", "demo", "emulated", "ci", "help"} <= shown
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in shown)


def test_all_that_is_public_is_on_the_api_page() -> None:
    page = (ROOT / "docs" / "api" / "index.rst").read_text()
    package = ROOT / "deepclust_ext"
    public = {path.parent.name for path in package.glob("*/__init__.py") if "__all__ = [" in path.read_text()}
    assert {"losses", "methods"} < public
    for name in public - {"ops", "reference"}:
        assert f".. automodule:: deepclust_ext.{name}\n" in page
    for name in set(ops.__all__) - set(deepclust_ext.__all__):
        assert f".. autofunction:: deepclust_ext.ops.{name}\n" in page


def heading_slugs(page: Path) -> set[str]:
    """Return what the headings of a page are called in links, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    for page in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("tests/**/*.md"),
        *ROOT.glob("csrc/**/*.md"),
    ):
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            name, _, heading = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name}: {link}"
            assert not heading or heading in heading_slugs(target), f"{page.name}: {link}"
