"""What a log line says without its values, and how the templates that tell it are learned, bounded and kept."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopwright_cluster.grouping.fingerprints import fingerprint
from loopwright_cluster.grouping.logs import ANY, Templates, common, differs_in_statement, is_statement, shape
from loopwright_cluster.template_records import TEMPLATES_BUCKET, TemplateRecords
from loopwright_common.testing.memory_bus import MemoryBus

law = settings(deadline=None)  # the machine that runs the tests may be busy
DAY = 20_000


def said(*lines, templates=None):
    """The template ids of lines of one service, in order."""
    known = templates if templates is not None else Templates()
    return [known.find("shop", "web", "log", line, DAY).id for line in lines]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("worker 17 took 3.5s", "worker <*> took <*>"),
        ("took 20 ms, 3 min and 12 hours", "took <*> and <*>"),
        ("user=root uid=0 tty=ssh ruser=", "user=<*> uid=<*> tty=<*> ruser="),
        ("GET https://a.example/b?c=1 from bob@example.org", "GET <*> from <*>"),
        ('10.0.0.1 "POST /v2/orders/17 HTTP/1.1" status: 200', "<*> POST <*> status: <*>"),
        ("deleted blk_1 blk_-22 blk_3", "deleted <*>"),
        ("connection from proxy.example.com.mx [10.1.2.3] closed", "connection from <*> [<*>] closed"),
        ("proxy.corp.lan:5070 close", "<*> close"),
        ("open /var/lib/db/file.dat failed", "open <*> failed"),
        (r"open C:\Windows\winsxs\x.dll failed", "open <*> failed"),
        ("fatal at Sat Jun 18 02:08:10 2005 in loop", "fatal at <*> in loop"),
        ("data address space.........0x1 set", "data address space ......... <*> set"),
        ("close, 451 bytes sent, 18846 bytes (18.4 KB) received", "close, <*> sent, <*> received"),
        ("close, 1190 bytes (1.16 KB) sent, 7 bytes (7%), done", "close, <*> sent, <*>, done"),
        ("read 12 (of 40) at 3 (of 9)", "read <*> (of <*>) at <*> (of <*>)"),
        ("r1---sn-i3b.video.example.com:443 open", "<*> open"),
        ("done --- 3 left", "done --- <*> left"),
        ("state.clipTopAmount:180, i:0", "state.clipTopAmount:<*>, i:<*>"),
        ("filter 'safety net' added", "filter <*> added"),
        ('{"level":"info","msg":"cache miss for 17","user":"bob"}', "cache miss for <*>"),
        ('level=info msg="cache miss for 17" user=bob', "cache miss for <*>"),
        ("id 6f1c3b52-5d0c-5c8e-9a55-9d8f3f4f0c11 at 0x7ffe12ab", "id <*> at <*>"),
        ("", ""),
        ("don't panic", "don't panic"),
    ],
)
def test_values_go_out_of_a_line_and_its_statement_stays(line, expected):
    assert " ".join(shape(line)) == expected


def test_lines_that_differ_in_a_name_are_one_problem():
    assert len(set(said("Failed password for root from 10.0.0.1 port 22", "Failed password for webmaster from 10.0.0.2 port 17"))) == 1


def test_lines_that_differ_in_a_word_of_the_trade_are_two():
    assert len(set(said("Block 7 stored as bytes in memory", "Block 9 stored as values in memory"))) == 2
    assert len(set(said("task 7 moved from NEW to RUNNING", "task 7 moved from RUNNING to FAILED"))) == 2
    assert len(set(said("the liveness probe of pod a7 failed", "the readiness probe of pod b8 failed"))) == 2
    assert len(set(said("cpu limit not specified for 17", "disk limit not specified for 18"))) == 2
    assert len(set(said("task 7 ended with TimeoutError", "task 8 ended with ConnectionError"))) == 2
    assert len(set(said("receive action: android.intent.SCREEN_ON now", "receive action: android.intent.SCREEN_OFF now"))) == 2


def test_a_name_after_a_word_that_announces_one_is_a_value_whatever_it_looks_like():
    assert not differs_in_statement("test", "service", "user")
    assert differs_in_statement("test", "service", "the")
    assert is_statement("stopped")
    assert is_statement("CLEANUP")
    assert is_statement("OrderCreated")
    assert not is_statement("webmaster")
    assert not is_statement("McDonald")


def test_a_template_that_grows_keeps_its_id_and_what_it_said_before():
    templates = Templates()
    first, second, again = said(
        "Accepted key for alice over ssh", "Accepted key for bob over ssh", "Accepted key for alice over ssh", templates=templates
    )
    assert first == second == again
    assert templates.find("shop", "web", "log", "Accepted key for alice over ssh", DAY).text == "Accepted key for <*> over ssh"


def test_services_and_projects_do_not_share_templates(make_signal):
    templates = Templates()
    lines = [make_signal(title="Invalid user bob from x", service=service, project=project) for service in "ab" for project in ("p", "q")]
    keys = [(line.project, fingerprint(line, templates=templates).key) for line in lines]
    assert len(set(keys)) == 4
    assert templates.count("p") == templates.count("q") == 2


def test_without_templates_the_first_line_has_the_fingerprint_it_has_with_them(make_signal):
    line = make_signal(title="Invalid user bob from 10.0.0.1")
    assert fingerprint(line).key == fingerprint(line, templates=Templates()).key


def test_a_template_that_grows_changes_no_fingerprint(make_signal):
    templates = Templates()
    one, other = make_signal(title="Invalid user bob from 10.0.0.1"), make_signal(title="Invalid user eve from 10.0.0.1")
    before = fingerprint(one, templates=templates).key
    assert fingerprint(other, templates=templates).key == before == fingerprint(one, templates=templates).key


def test_a_line_whose_title_was_cut_is_known_by_its_body(make_signal):
    start = "very long line " * 30
    one = make_signal(title=(start + "ends well")[:512], body=start + "x" * 200 + " ends well")
    other = make_signal(title=(start + "ends badly")[:512], body=start + "x" * 200 + " ends badly")
    assert fingerprint(one).key != fingerprint(other).key


def corpus(seed, lines=400):
    rng = random.Random(seed)
    verbs, things = ("opened", "closed", "lost", "found"), ("session", "block", "table", "lease")
    names = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(40)]
    return [
        rng.choice(
            (f"{rng.choice(verbs)} {rng.choice(things)} for {rng.choice(names)} after {rng.random()}s", f"peer {rng.choice(names)} is gone")
        )
        for _ in range(lines)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_restart_gives_each_line_the_template_it_had(seed):
    lines, before = corpus(seed), Templates()
    had = said(*lines, templates=before)
    stored = before.unsaved()
    random.Random(seed).shuffle(stored)
    after = Templates()
    for key, value in stored:
        after.load(key, value)
    assert said(*lines, templates=after) == had
    assert {key for key, _ in after.unsaved()} == set()


@pytest.mark.parametrize("seed", range(5))
def test_the_same_lines_end_alike_wherever_they_are_cut_into_batches(seed):
    lines, whole, parts = corpus(seed), Templates(), Templates()
    expected = said(*lines, templates=whole)
    found = []
    for start in range(0, len(lines), 7):
        found += said(*lines[start : start + 7], templates=parts)
        parts.saved(parts.unsaved())
    assert found == expected


words_ = st.lists(st.sampled_from(["a", "b", ANY, "c"]), min_size=3, max_size=3).map(tuple)


@law
@given(words_, words_, words_)
def test_joining_two_copies_of_a_template_does_not_depend_on_the_order(one, two, three):
    assert common(one, two) == common(two, one)
    assert common(common(one, two), three) == common(one, common(two, three))
    assert common(one, one) == one


@law
@given(st.text(max_size=300))
def test_any_text_has_a_shape_and_a_template_that_it_fits(text):
    tokens = shape(text)
    assert tokens
    assert len(tokens) <= 96
    assert Templates().find("p", "s", "log", text, DAY).fits(tokens)


def test_templates_are_bounded_and_the_longest_unused_give_way():
    templates = Templates(place_max=64, project_max=100)
    kept = said("Lease for shard expired", templates=templates)[0]
    for number in range(1_000):
        word = "".join("abcdefghij"[int(digit)] for digit in str(number))
        templates.find("shop", f"s{number % 7}", "log", f"{word} {word}x {word}y", DAY + number)
        templates.find("shop", "web", "log", "Lease for shard expired", DAY + number)
        assert templates.count("shop") <= 101
    assert said("Lease for shard expired", templates=templates) == [kept]
    assert any(value is None for _, value in templates.unsaved())


def test_services_without_number_are_bounded_and_a_flood_in_one_leaves_the_quiet_ones():
    templates = Templates(place_max=64, project_max=100)
    kept = templates.find("shop", "quiet", "log", "Lease for shard expired", DAY)
    for number in range(600):
        word = "".join("abcdefghij"[int(digit)] for digit in str(number))
        templates.find("shop", "loud", "log", f"{word} {word}x {word}y", DAY)
        templates.find("shop", f"once-{number}", "log", f"{word} only", DAY - 1)
    assert templates.count("shop") <= 101
    assert len(templates._projects["shop"]) <= 101
    assert templates.find("shop", "quiet", "log", "Lease for shard expired", DAY) is kept


@pytest.mark.timeout(60)  # backtracking that grows with the square takes minutes
@pytest.mark.parametrize(
    "piece", ["a", "1", "a.", "0x", "'", "1:", "a@", "-", "Jan ", "f1", "/a", "_1", "a://", '"', "=a", "a=", "<*>", "\\", "Mon ", 'msg="']
)
def test_hostile_repetition_is_read_in_bounded_time(piece):
    shape(piece * (16_384 // len(piece)))


async def test_what_is_saved_is_there_after_a_restart():
    bus = MemoryBus("cluster")
    records = await TemplateRecords.open(bus)
    await records.start()
    had = said(*corpus(1), templates=records.templates)
    await records.save("shop")
    assert records.templates.unsaved() == []
    await records.stop()
    again = await TemplateRecords.open(bus)
    await again.start()
    assert said(*corpus(1), templates=again.templates) == had
    await again.stop()


async def test_two_replicas_that_grew_one_template_apart_end_with_the_same():
    bus = MemoryBus("cluster")
    one, other = await TemplateRecords.open(bus), await TemplateRecords.open(bus)
    said("copy alice to bob over ssh now", "copy alice to eve over ssh now", templates=one.templates)
    said("copy alice to bob over ssh now", "copy mallory to bob over ssh now", templates=other.templates)
    await one.save()
    await other.save()
    (key,) = await (await bus.key_value(TEMPLATES_BUCKET)).keys()
    entry = await (await bus.key_value(TEMPLATES_BUCKET)).get(key)
    assert json.loads(entry.value)["tokens"] == ["copy", ANY, "to", ANY, "over", "ssh", "now"]


async def test_an_unreadable_record_is_left_out_and_the_others_are_read():
    bus = MemoryBus("cluster")
    store = await bus.key_value(TEMPLATES_BUCKET)
    await store.create("shop.place.broken", b"not json")
    await store.create("shop.place.short", b'{"tokens": [], "number": 1, "used_on": 1}')
    records = await TemplateRecords.open(bus)
    await records.start()
    assert records.templates.count("shop") == 0
    await records.stop()
