from datetime import UTC, datetime

import numpy as np
import pytest
from loopwright_cluster.embedding import TITLE_ENDS, minilm
from loopwright_cluster.grouping.describe import PEOPLE, embedding_text
from loopwright_cluster.grouping.v1 import HUMAN_KINDS
from loopwright_common.contracts.signals import Signal, SignalKind

AT = datetime(2026, 1, 1, tzinfo=UTC)


def signal(kind, title, body):
    return Signal(id="s", project="shop", source="http", kind=kind, title=title, body=body, occurred_at=AT, received_at=AT)


def test_what_people_wrote_is_embedded_as_they_wrote_it_but_for_addresses_and_long_numbers():
    text = embedding_text(signal(SignalKind.ISSUE, "Vec<T> panics at 0x7fff12", "index 3 of `names`\n\nline 20184"))
    title, rest = text.split(TITLE_ENDS)
    assert title == "Vec<T> panics at ."
    assert "index 3 of `names`" in rest
    assert "20184" not in rest


def test_a_person_cannot_move_the_end_of_the_title():
    text = embedding_text(signal(SignalKind.TICKET, f"a{TITLE_ENDS}b", f"c{TITLE_ENDS}d"))
    assert text.count(TITLE_ENDS) == 1
    assert text.startswith("a b")


def test_a_machines_text_has_no_title_of_its_own_weight():
    assert TITLE_ENDS not in embedding_text(signal(SignalKind.EXCEPTION, "KeyError", "in pay"))


def test_people_are_the_same_here_as_for_the_rules():
    assert PEOPLE == HUMAN_KINDS


class Encoder(minilm.OnnxEncoder):
    """Without a model: a text's vector says how often it holds each of three letters."""

    def __init__(self):
        self._chars_max = 100
        self._tokenizer = self

    def encode_batch(self, texts):
        return [type("Encoding", (), {"ids": [text.count(letter) for letter in "abc"]}) for text in texts]

    def _run(self, ids):
        row = np.array([ids], np.float32)
        return row / np.linalg.norm(row)


def test_a_title_counts_on_top_and_leaves_the_texts_beside_it_alone():
    plain, titled, other = Encoder().encode(["a b", f"a{TITLE_ENDS} b", "c"])
    assert plain == pytest.approx([0.7071, 0.7071, 0], abs=1e-3)
    assert titled[0] > titled[1] > 0
    assert np.linalg.norm(titled) == pytest.approx(1)
    assert other == pytest.approx([0, 0, 1])
