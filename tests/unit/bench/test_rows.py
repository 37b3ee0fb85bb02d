"""Rows of a grouping file as signals."""

from loopwright_cluster.grouping.fingerprints import fingerprint
from loopwright_common.contracts.signals import SignalKind

from bench.rows import kind_of, signal_of


def test_frames_that_are_objects_are_read_by_the_names_that_exports_have():
    told = [
        [
            {"filename": "/app/shop/price.py", "function": "of", "lineno": 3},
            {"filename": "/app/shop/pay.py", "function": "pay", "lineno": 9},
        ],
        [
            {"path": "/srv/app/shop/price.py", "method": "of", "line": "7"},
            {"path": "/srv/app/shop/pay.py", "method": "pay", "in_app": True},
        ],
        ["shop/price.py:3 in of", "shop/pay.py:9 in pay"],
    ]
    rows = [{"id": "a", "title": "ValueError: no", "text": "ValueError: no", "frames": frames} for frames in told]
    assert {kind_of(row) for row in rows} == {SignalKind.EXCEPTION}
    signals = [signal_of(number, row, SignalKind.EXCEPTION) for number, row in enumerate(rows)]
    assert (signals[1].frames[-1].line, signals[1].frames[0].function) == (7, "pay")
    assert len({fingerprint(signal).key for signal in signals}) == 1
