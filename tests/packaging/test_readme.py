"""What the README shows runs."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_first_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example, *_) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert re.fullmatch(r"loss \d\.\d{4}, anchors whose negative carries no weight: \d+%\n", capsys.readouterr().out)


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parents[2]
    for page in (root / "README.md", *root.glob("docs/*.md"), root / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
