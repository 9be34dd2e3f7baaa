"""benchmarks.scale: its page is the one in docs, and its exchanges are what they are by hand."""

import pytest

from benchmarks import scale


def test_the_page_is_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main([]) == 0
    assert capsys.readouterr().out == scale.PAGE.read_text()


def test_exchanges_by_hand() -> None:
    # 8 GPUs of one node: 7 messages.
    assert scale.ring(360e3, 8) == pytest.approx(7 * (5e-6 + 1e-6))
    assert scale.by_nodes(360e3, 8) == scale.ring(360e3, 8)
    # 64 GPUs: 63 messages between nodes, or 7 of these and 7 of eight parts each within a node.
    assert scale.ring(40e3, 64) == pytest.approx(63 * (15e-6 + 1e-6))
    assert scale.by_nodes(360e3, 64) == pytest.approx(7 * (15e-6 + 9e-6) + 7 * (5e-6 + 8e-6))
    # Messages to 7 GPUs of the node, and to 56 others.
    assert scale.all_to_all(360e3, 8) == pytest.approx(5e-6 + 7 * 1e-6)
    assert scale.all_to_all(360e3, 64) == pytest.approx(5e-6 + 7 * 1e-6 + 15e-6 + 56 * 9e-6)
    assert scale.summed(8 * 360e3, 8) == pytest.approx(scale.all_to_all(360e3, 8) + scale.by_nodes(360e3, 8))
    assert scale.summed(64e3, 8) == scale.by_nodes(64e3, 8)
    # What is computed longer than it travels is all that counts.
    assert scale.in_turn(360e3, 8, 1.0) == pytest.approx(1.0)
    assert scale.in_turn(360e3, 8, 0.0) == pytest.approx(scale.ring(360e3, 8))


def test_work_grows_with_the_rows_of_all() -> None:
    (one, back), (many, back_of_many) = scale.contrastive_seconds(1), scale.contrastive_seconds(64)
    assert many == pytest.approx(64 * one)
    assert back_of_many == pytest.approx(127 * back)
