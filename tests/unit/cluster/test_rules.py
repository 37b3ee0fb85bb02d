"""A project's own rules: what they match, what they give, and what a wrong one is told."""

import pytest
from loopwright_cluster.grouping import earlier
from loopwright_cluster.grouping.fingerprints import alternatives, fingerprint
from loopwright_cluster.grouping.logs import Templates
from loopwright_cluster.grouping.rules import Rules
from loopwright_common.contracts.configuration import GroupingConfig, ProjectConfig
from pydantic import ValidationError

KEYS = [
    "92a3b5e89aea294addf6ab0892ccf928",
    "3f50e092dccff95fc4a89a22642f6c21",
    "54d39def656ff19dff99b068a8e5307f",
    "fd51deabe830e2e235adaf1742abba0a",
    "b77b944d4b429ae674f4d10e12d7aaa9",
    "397dab69232c3c3e53d1ebb791ac3bba",
    "d70fc1a21d4824bf15bd9b3d5d22dda1",
]
FRAMES = (("shop/app.py", "dispatch"), ("shop/db/retry.py", "with_retries"), ("shop/pricing.py", "convert"))


@pytest.fixture
def crash(make_signal):
    def make(id="s1", **fields):
        given = {"kind": "exception", "service": "web", "title": "TimeoutError: slow", "exception_type": "TimeoutError", "frames": FRAMES}
        return make_signal(id, **(given | fields))

    return make


def rules(**config):
    return Rules(GroupingConfig.model_validate(config))


def test_a_rule_gives_its_fingerprint_to_what_matches_and_leaves_the_rest(crash):
    mine = rules(fingerprints=[{"name": "slow database", "type": "*Timeout*", "path": "shop/db/*", "fingerprint": ["database-slow"]}])
    here, there = fingerprint(crash(), rules=mine), fingerprint(crash(frames=[FRAMES[1], ("other.py", "go")], service="jobs"), rules=mine)
    assert here.key == there.key
    assert here.explicit
    assert "rule slow database" in here.described
    assert fingerprint(crash(exception_type="KeyError"), rules=mine) == fingerprint(crash(exception_type="KeyError"))


def test_the_first_rule_that_matches_counts_and_goes_before_the_senders_words(crash):
    mine = rules(fingerprints=[{"service": "web", "fingerprint": ["one"]}, {"service": "*", "fingerprint": ["two"]}])
    assert "one" in fingerprint(crash(fingerprint=("sender",)), rules=mine).parts
    assert "two" in fingerprint(crash(service="jobs"), rules=mine).parts


def test_variables_are_the_signals_own_values(crash):
    mine = rules(
        fingerprints=[{"type": "*", "fingerprint": ["{{ default }}", "{{ error.type }}", "{{tags.tenant}}", "{{ stack.function }}"]}]
    )
    one, other = crash(labels={"tenant": "a"}), crash(labels={"tenant": "b"})
    assert fingerprint(one, rules=mine).key != fingerprint(other, rules=mine).key
    assert fingerprint(one, rules=mine).parts[2:] == ("TimeoutError", "a", "convert")
    assert not fingerprint(one, rules=mine).explicit


def test_default_follows_the_template_of_a_log_line(make_signal):
    mine, templates = rules(fingerprints=[{"kinds": ["log"], "fingerprint": ["{{ default }}", "x"]}]), Templates()
    lines = [make_signal(title=f"Failed password for {name} from 10.0.0.1") for name in ("root", "eve", "root")]
    assert len({fingerprint(line, rules=mine, templates=templates).key for line in lines}) == 1


@pytest.mark.parametrize(
    "match",
    [
        {"kinds": ["exception"]}, {"service": "W?B"}, {"environment": "prod*"}, {"transaction": "POST /pay"}, {"message": "*slow"},
        {"labels": {"region": "eu-*"}}, {"module": "shop.pricing", "function": "conv*"}, {"function": "with_retries", "path": "*retry.py"},
    ],
)  # fmt: skip
def test_each_condition_matches_what_it_names_and_nothing_else(crash, match):
    frames = [
        *({"file": file, "function": name} for file, name in FRAMES),
        {"file": "p.py", "module": "shop.pricing", "function": "convert"},
    ]
    signal = crash(environment="production", transaction="POST /pay", labels={"region": "eu-1"}, frames=frames)
    other = crash(kind="log", title="else", exception_type="", frames=(), service="jobs", environment="dev", transaction="GET /", labels={})
    mine = rules(fingerprints=[{**match, "fingerprint": ["given"]}])
    assert "given" in fingerprint(signal, rules=mine).parts
    assert "given" not in fingerprint(other, rules=mine).parts


def test_conditions_on_frames_have_to_meet_in_one_frame(crash):
    mine = rules(fingerprints=[{"path": "shop/app.py", "function": "convert", "fingerprint": ["given"]}])
    assert "given" not in fingerprint(crash(), rules=mine).parts


def test_frames_may_be_put_out_of_the_product_or_taken_in_and_the_last_rule_counts(crash):
    without = fingerprint(crash(frames=[FRAMES[0], FRAMES[2]])).key
    assert fingerprint(crash(), rules=rules(frames=[{"path": "shop/db/*", "action": "not_in_app"}])).key == without
    back = [{"path": "shop/*", "action": "not_in_app"}, {"path": "shop/[a-z]*", "action": "in_app"}, {"path": "shop/*", "action": "in_app"}]
    assert fingerprint(crash(), rules=rules(frames=back)).key == fingerprint(crash()).key
    vendored = [*FRAMES, {"file": "site-packages/ours/core.py", "function": "run"}]
    taken = rules(frames=[{"path": "site-packages/ours/*", "action": "in_app"}])
    assert fingerprint(crash(frames=vendored), rules=taken).key != fingerprint(crash(frames=vendored)).key == fingerprint(crash()).key


def test_an_ignored_frame_is_in_no_variant(crash):
    mine = rules(frames=[{"function": "with_retries", "action": "ignore"}])
    plain = crash(frames=[FRAMES[0], FRAMES[2]])
    assert fingerprint(crash(), rules=mine).key == fingerprint(plain).key
    assert alternatives(crash(), fingerprint(crash(), rules=mine), rules=mine)[0].key == alternatives(plain, fingerprint(plain))[0].key


def test_brackets_in_a_pattern_stand_for_themselves(make_signal):
    mine = rules(fingerprints=[{"message": "[pool] *", "fingerprint": ["given"]}])
    assert "given" in fingerprint(make_signal(title="[pool] is empty"), rules=mine).parts
    assert "given" not in fingerprint(make_signal(title="p is empty"), rules=mine).parts


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"fingerprints": [{"fingerprint": ["x"]}]}, "matches every signal"),
        ({"fingerprints": [{"type": "*", "fingerprint": []}]}, "at least 1 item"),
        ({"fingerprints": [{"type": "*", "fingerprint": ["{{ stack.line }}"]}]}, "unknown variable {{ stack.line }}; there are default,"),
        ({"fingerprints": [{"typ": "*", "fingerprint": ["x"]}]}, "Extra inputs are not permitted"),
        ({"fingerprints": [{"type": "*" * 9, "fingerprint": ["x"]}]}, "should match pattern"),
        ({"frames": [{"action": "ignore"}]}, "needs a module, a path or a function"),
        ({"frames": [{"path": "x", "action": "drop"}]}, "'in_app', 'not_in_app' or 'ignore'"),
        ({"fingerprints": [{"type": "x", "fingerprint": ["x"]}] * 101}, "at most 100 items"),
    ],
)
def test_a_wrong_rule_is_refused_with_what_is_wrong(config, said):
    with pytest.raises(ValidationError) as refused:
        ProjectConfig.model_validate({"name": "shop", "grouping": config})
    assert said in str(refused.value)


@pytest.mark.timeout(60)  # backtracking that grows with a power of the text takes minutes
def test_a_pattern_costs_little_on_hostile_text(make_signal):
    mine = rules(fingerprints=[{"message": "*a*a*a*a*a*b", "fingerprint": ["given"]}] * 20)
    for _ in range(50):
        fingerprint(make_signal(title="a" * 512), rules=mine)


def test_what_an_earlier_version_grouped_is_found_by_its_key(crash):
    found = fingerprint(crash())
    assert found.key != earlier.key(crash())
    assert (alternatives(crash(), found)[-1].key, alternatives(crash(), found)[-1].record) == (earlier.key(crash()), False)


def test_the_keys_of_version_1_are_what_they_were(crash, make_signal):
    # Written down when version 2 came: whoever changes one of these opens every known report a second time.
    assert [earlier.key(signal) for signal in (
        crash(), crash(fingerprint=("{{ default }}", "a")), crash(fingerprint=("x",)), make_signal(title="user 17 is gone"),
        make_signal(kind="alert", title="x", labels={"alertname": "Slow", "pod": "p-1"}),
        make_signal(kind="ticket", title="Help!", body="It broke."),
        make_signal(kind="health_check", title="down", labels={"check": "pay"}),
    )] == KEYS  # fmt: skip
