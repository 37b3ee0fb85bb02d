"""What makes two signals the same problem without any embedding, and what keeps two problems apart."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopwright_cluster.grouping.fingerprints import fingerprint
from loopwright_cluster.grouping.normalise import normalise_file, normalise_function, parameterise

FRAMES = (("shop/app.py", "dispatch"), ("shop/checkout.py", "checkout"), ("shop/pricing.py", "convert"))


@pytest.fixture
def crash(make_signal):
    def make(id="s1", **fields):
        given_fields = {
            "kind": "exception", "service": "shop", "title": "ZeroDivisionError: division by zero", "exception_type": "ZeroDivisionError",
            "exception_value": "division by zero", "frames": FRAMES, **fields,
        }  # fmt: skip
        return make_signal(id, **given_fields)

    return make


def key(signal):
    return fingerprint(signal).key


def test_the_same_crash_at_another_line_in_another_release_by_another_person_is_the_same(crash):
    moved = [{"file": file, "function": function, "line": 99} for file, function in FRAMES]
    assert key(crash()) == key(crash("s2", frames=moved, release="2.0", at=9_000, actor="someone", environment="staging"))


def test_a_crash_with_another_value_in_its_message_is_the_same(crash):
    assert key(crash()) == key(crash(exception_value="integer division by 0", title="ZeroDivisionError: other"))


@pytest.mark.parametrize(
    "change",
    [
        {"exception_type": "KeyError"},
        {"frames": FRAMES[:2]},
        {"frames": (*FRAMES[:2], ("shop/stock.py", "convert"))},
        {"frames": (*FRAMES[:2], ("shop/pricing.py", "round_total"))},
        {"service": "warehouse"},
    ],
)
def test_another_type_frame_or_service_is_another_problem(crash, change):
    assert key(crash()) != key(crash(**change))


def test_frames_of_libraries_do_not_count(crash):
    inside = [
        {"file": "shop/app.py", "function": "dispatch"}, {"file": "site-packages/flask/app.py", "function": "full", "in_app": False},
        {"file": "shop/checkout.py", "function": "checkout"}, {"file": "shop/pricing.py", "function": "convert"},
    ]  # fmt: skip
    assert key(crash()) == key(crash(frames=inside))


def test_recursion_counts_once(crash):
    assert key(crash(frames=[*FRAMES, FRAMES[-1], FRAMES[-1]])) == key(crash())


def test_without_in_app_frames_the_message_and_the_place_in_the_library_count(crash):
    def library(function):
        return [{"file": "lib/pool.py", "function": function, "in_app": False}]

    first = crash(frames=library("get"), exception_value="timeout after 30s for 10.0.0.1")
    assert key(first) == key(crash(frames=library("get"), exception_value="timeout after 12s for 10.0.0.9"))
    assert key(first) != key(crash(frames=library("put"), exception_value="timeout after 30s for 10.0.0.1"))
    assert key(first) != key(crash(frames=library("get"), exception_value="connection refused"))


def test_an_explicit_fingerprint_overrides_everything_else(crash, make_signal):
    first = crash(fingerprint=("checkout", "v2"))
    assert key(first) == key(make_signal(kind="log", title="something else", fingerprint=("checkout", "v2")))
    assert key(first) != key(crash(fingerprint=("checkout", "v3")))
    assert fingerprint(first).explicit


def test_default_in_an_explicit_fingerprint_splits_the_usual_groups_further(crash):
    here, there = crash(fingerprint=("{{ default }}", "tenant-a")), crash(fingerprint=("{{default}}", "tenant-b"))
    assert len({key(here), key(there), key(crash())}) == 3
    assert key(here) == key(crash("s2", fingerprint=("{{  default  }}", "tenant-a")))
    assert key(here) != key(crash(fingerprint=("{{ default }}", "tenant-a"), exception_type="KeyError"))
    assert not fingerprint(here).explicit


def test_default_alone_is_no_explicit_fingerprint(crash):
    assert fingerprint(crash(fingerprint=("{{ default }}",))) == fingerprint(crash())


def test_log_lines_that_differ_in_their_values_only_are_the_same(make_signal):
    def line(text):
        return key(make_signal(title=text))

    assert line("user a@b.org waited 3.5s for https://x.org/1") == line("user cd@ef.com waited 12ms for http://y.net/zz?q=1")
    assert line("user a@b.org waited") != line("user a@b.org left")


def test_an_alert_is_known_by_its_labels_but_not_by_where_it_fired(make_signal):
    def alert(**labels):
        return key(make_signal(kind="alert", title="x", service="shop", labels={"alertname": "HighErrors", "route": "/checkout", **labels}))

    here = alert(pod="shop-1", instance="10.0.0.1:9100", severity="warning")
    assert here == alert(pod="shop-2", instance="10.0.0.7:9100", severity="critical")
    assert alert() != alert(route="/search")
    assert alert() != alert(alertname="HighLatency")


def test_alerts_of_one_rule_about_two_workloads_or_two_probed_pages_are_two_problems(make_signal):
    def alert(**labels):
        return key(make_signal(kind="alert", title="x", labels={"alertname": "KubePodNotReady", "namespace": "prod", **labels}))

    assert alert(container="billing") != alert(container="mailer")
    assert alert(pod="billing-66d5f9c7b4-kq9rt") != alert(pod="mailer-7d9f8c6b5d-x2lkq")
    for one, other in (("billing-66d5f9c7b4-kq9rt", "billing-7c9d8f6b54-2lxkq"), ("agent-x2lkq", "agent-8zv4p"), ("redis-0", "redis-12")):
        assert alert(pod=one) == alert(pod=other)
    assert alert(pod="named-otherwise") == alert(pod="by-somebody")  # nothing tells a workload in it
    assert alert(instance="https://shop.example.com/cart?probe=1") == alert(instance="https://shop.example.com/cart?probe=2")
    assert alert(instance="https://shop.example.com/cart") != alert(instance="https://help.example.com/contact")
    assert alert(instance="10.0.0.1:9100") == alert(instance="db-7:9100")


def test_a_health_check_is_known_by_its_name_and_target_not_by_what_it_answered(make_signal):
    def check(name="checkout", url="http://shop/health/checkout", title="failed with 500"):
        return key(make_signal(kind="health_check", title=title, service="shop", labels={"check": name, "url": url}))

    assert check() == check(title="timed out after 10 s")
    assert check() != check(name="search")
    assert check() != check(url="http://shop/health/search")


def test_a_health_check_without_labels_is_known_by_its_title(make_signal):
    def check(title):
        return key(make_signal(kind="health_check", title=title, service="shop"))

    assert check("checkout failed with 500") == check("checkout failed with 503")
    assert check("checkout failed with 500") != check("search failed with 500")


def test_tickets_with_the_same_words_are_the_same(make_signal):
    def ticket(title, body):
        return key(make_signal(kind="ticket", title=title, body=body))

    assert ticket("Cannot pay!", "It  fails for order 17.") == ticket("cannot pay", "it fails for order 4711")
    assert ticket("Cannot pay", "It fails.") != ticket("Cannot pay", "It is slow.")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("mail to bob@example.com bounced", "mail to <email> bounced"),
        ("GET https://a.example/b?c=1 took 12ms", "GET <url> took <duration>"),
        ("no route to db-1.prod.internal:5432", "no route to <host>"),
        ("10.1.2.3:80 refused, fe80::1ff:fe23:4567:890a refused", "<ip> refused, <ip> refused"),
        ("trace 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 lost", "trace <trace> lost"),
        ("job 6f1c3b52-5d0c-5c8e-9a55-9d8f3f4f0c11 died", "job <uuid> died"),
        ("blob sha256:" + "ab12" * 16, "blob <hash>"),
        ("at 2026-11-26T10:00:00.123Z and Nov 26 10:11:12 and 26.11.2026", "at <date> and <date> and <date>"),
        ("waited 1.5 seconds, 3 min, 12h", "waited <duration>, <duration>, <duration>"),
        ("segfault at 0x7ffe12ab and deadbeef01", "segfault at <hex> and <hex>"),
        ("retried 3 times, -1.5e3 left, 98%", "retried <number> times, <number> left, <number>"),
        ("key 'vat' and \"a b\" and `c`", "key <quoted> and <quoted> and <quoted>"),
        ("don't touch utf8 or v2, it's fine", "don't touch utf8 or v2, it's fine"),
        ("feedback decade", "feedback decade"),
    ],
)
def test_values_in_messages_are_replaced_by_their_kind(message, expected):
    assert parameterise(message) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("lambda$main$0", "lambda$main$17"), ("Foo$$Lambda$14/0x00008001", "Foo$$Lambda$29/0x0000aa12"), ("main.func1", "main.func2.1"),
        ("app::run::{closure#0}", "app::run::{closure#3}"), ("core::h0123456789abcdef", "core::hfedcba9876543210"),
        ("render_4f2a9bc1", "render_99aa01bc"), ("outer.<locals>.inner", "outer.inner"),
        ("com.sun.proxy.$Proxy12.pay", "com.sun.proxy.$Proxy3.pay"), ("copy.constprop.0", "copy.constprop.1"), ("", "(anonymous)"),
    ],
)  # fmt: skip
def test_generated_names_of_one_function_are_the_same(one, other):
    assert normalise_function(one) == normalise_function(other)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/srv/releases/20261126101500/shop/pricing.py", "shop/pricing.py"),
        ("/home/me/src/shop/pricing.py", "src/shop/pricing.py"),
        ("https://cdn.example/static/js/main.3f2a1b9c.chunk.js?v=3", "static/js/main.*.chunk.js"),
        ("webpack:///./src/App.tsx", "src/App.tsx"),
        ("C:\\app\\lib\\Order.cs", "app/lib/Order.cs"),
        ("/go/pkg/mod/github.com/acme/cart@v1.2.3/total.go", "acme/cart/total.go"),
        ("", ""),
    ],
)
def test_files_keep_what_two_releases_share(path, expected):
    assert normalise_file(path) == expected


@given(st.text(max_size=600))
def test_parameterising_twice_changes_nothing_more_and_never_fails(text):
    once = parameterise(text)
    assert parameterise(once).count("<quoted>") >= once.count("<quoted>")
    assert len(once) <= max(len(text) * 5, 64)
    normalise_file(text)
    normalise_function(text)


@pytest.mark.parametrize("piece", ["a", "1", "a.", "0x", "'", "1:", "a@", "-", "Jan ", "f1", "/a", "_1", "a://", "\"'", "\n "])
def test_hostile_repetition_is_read_in_linear_time(piece):
    started = time.perf_counter()
    for work in (parameterise, normalise_file, normalise_function):
        work(piece * (16_384 // len(piece)))
    assert time.perf_counter() - started < 1.0
