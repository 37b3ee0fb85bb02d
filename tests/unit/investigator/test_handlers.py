"""From the ready report on the bus to the published result: once, however often it is delivered, and whatever is missing."""

from __future__ import annotations

import asyncio
import gzip
import json
from datetime import timedelta
from itertools import pairwise

import pytest
from loopwright_common.bus import BusUnavailable, ConsumerSpec, Outgoing
from loopwright_common.contracts.configuration import CONFIG_BUCKET, PublishedProject
from loopwright_common.contracts.investigations import InvestigationVerdict
from loopwright_common.contracts.queries import RatesAnswer, RatesQuery
from loopwright_common.contracts.subjects import INVESTIGATIONS_COMPLETED, INVESTIGATIONS_STARTED, RATES_QUERY, REPORTS_READY
from loopwright_common.errors import Permanent, Unavailable
from loopwright_common.projects import Projects
from loopwright_common.testing.clock import FakeClock
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_common.testing.scripted_model import Reply, ScriptedModel
from loopwright_investigator.adapters.bus_ports import BUCKET, BusRates, StoredBundles
from loopwright_investigator.adapters.git_history import MirroredRepositories, PlainSource
from loopwright_investigator.adapters.model_advisor import open_advisor
from loopwright_investigator.handlers import Investigations, ask_in_parts, investigation_id
from loopwright_investigator.replay import read_bundle, replay
from loopwright_investigator.settings import InvestigatorSettings
from loopwright_repositories.checkouts import Checkouts


class Stage:
    """An investigator on a bus in memory, beside a gateway that answers ``rates.query`` from the scene."""

    def __init__(self, scene, tmp_path, *, model=None, gateway=True, repositories=None, seconds_max=60.0):
        self.scene = scene
        self.case = scene.case
        self.clock = FakeClock(self.case.now)
        self.bus = MemoryBus("investigator", clock=self.clock)
        self.projects = Projects(self.bus)
        self.model = model
        self.advisor = None
        self.gateway = gateway
        self.asked: list[RatesQuery] = []
        self.repositories = repositories or MirroredRepositories(Checkouts(tmp_path / "stage-mirrors"), PlainSource())
        self.limits = {"seconds_max": seconds_max}

    async def __aenter__(self):
        bucket = await self.bus.key_value(CONFIG_BUCKET)
        await bucket.put("project.demo", PublishedProject(number=1, revision=1, config=self.case.config).model_dump_json().encode())
        await self.projects.start()
        await self.projects.wait_loaded(5)
        if self.gateway:
            await self.bus.as_service("gateway").answer(RATES_QUERY, self._rates)
        self.bundles = await StoredBundles.open(self.bus, 100)
        if self.model is not None:
            self.advisor = await open_advisor(self.model, self.bus, self.clock)
        self.handler = Investigations(
            self.bus, self.projects, self.repositories, BusRates(self.bus), self.bundles, self.clock, advisor=self.advisor, **self.limits
        )
        spec = ConsumerSpec("investigator-ready", "investigator", (REPORTS_READY,), attempts_max=6)
        await self.bus.consume(spec, self.handler.handle)
        return self

    async def __aexit__(self, *_):
        await self.bus.close()
        await self.projects.stop()
        if self.advisor is not None:
            await self.advisor.close()

    async def _rates(self, query):
        self.asked.append(query)
        return self.case.rates

    async def say_ready(self, ready=None, message_id="ready-1"):
        ready = ready or self.case.ready
        gateway = self.bus.as_service("gateway")
        await gateway.publish(Outgoing(REPORTS_READY, ready, message_id, {"project": "demo"}, about=ready.report.id))
        await self.bus.idle(30)

    async def go_through_retries(self, times):
        for _ in range(times):
            self.clock.advance(minutes=10)
            await self.bus.idle(30)

    def completed(self):
        return self.bus.published(INVESTIGATIONS_COMPLETED)


@pytest.fixture
def scene(new_repo, new_scene, shop):
    repo = new_repo()
    good, guilty, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    scene.guilty = guilty
    return scene


async def test_ready_report_is_started_investigated_and_completed(scene, tmp_path):
    async with Stage(scene, tmp_path) as stage:
        await stage.say_ready()
        (started,) = stage.bus.published(INVESTIGATIONS_STARTED)
        (result,) = stage.completed()
        assert started.report_id == result.report_id == "r1"
        assert result.id == investigation_id(stage.case.ready)
        assert result.suspects[0].commit == scene.guilty
        assert result.verdict is InvestigationVerdict.ACTIONABLE
        assert result.cost.wall_seconds > 0
        assert result.cost.cpu_seconds > 0
        assert result.cost.model_calls == 0
        (query,) = stage.asked
        assert query.report_id == "r1"
        assert query.start <= min(deploy.deployed_at for deploy in scene.deploys)
        assert query.end > stage.case.now


async def test_report_delivered_again_gives_the_same_result_without_working_again(scene, tmp_path):
    async with Stage(scene, tmp_path) as stage:
        await stage.say_ready()
        asked = len(stage.asked)
        stage.clock.advance(timedelta(minutes=30))  # beyond the bus's window for duplicates
        await stage.say_ready(message_id="ready-again")
        assert len(stage.asked) == asked
        first, *others = stage.completed()
        assert all(other == first for other in others)


async def test_new_attempt_is_a_new_investigation(scene, tmp_path):
    async with Stage(scene, tmp_path) as stage:
        await stage.say_ready()
        await stage.say_ready(stage.case.ready.model_copy(update={"attempt": 2}), "ready-2")
        one, two = stage.completed()
        assert one.id != two.id
        assert two.attempt == 2


async def test_bundle_replays_to_the_same_result_even_after_main_moved_on(scene, tmp_path):
    async with Stage(scene, tmp_path) as stage:
        await stage.say_ready()
        (result,) = stage.completed()
        scene.repo.commit("Later work", {"src/shop/later.py": "x = 1\n"}, minutes=1)
        bundle = read_bundle(await stage.bundles.get(result.id))
        again = await replay(bundle, stage.repositories)
        ignored = {"cost", "started_at", "completed_at"}
        assert again.model_dump(exclude=ignored) == result.model_dump(exclude=ignored)


async def test_oldest_bundles_go_when_there_are_too_many(scene, tmp_path):
    async with Stage(scene, tmp_path) as stage:
        objects, order = await stage.bus.object_store(BUCKET), await stage.bus.key_value(BUCKET)
        bundles = StoredBundles(objects, order, kept_max=3)
        for number in range(6):
            await bundles.put(f"i{number}", b"x")
            await asyncio.sleep(0.002)
        await bundles.put("i5", b"y")
        assert [await bundles.get(f"i{number}") for number in range(6)] == [None, None, None, b"x", b"x", b"y"]
        assert len(await order.keys()) == 3


async def test_gateway_that_does_not_answer_is_waited_for_and_then_named(scene, tmp_path):
    async with Stage(scene, tmp_path, gateway=False) as stage:
        await stage.say_ready()
        assert stage.completed() == []
        await stage.go_through_retries(4)
        (result,) = stage.completed()
        assert result.suspects[0].commit == scene.guilty
        assert "Not checked: exact rates" in result.summary


class Unreachable:
    def __init__(self, error):
        self.error = error
        self.tries = 0

    async def open(self, repository, main=None):
        self.tries += 1
        raise self.error


async def test_repository_that_does_not_answer_is_waited_for_and_then_asked_about(scene, tmp_path):
    repositories = Unreachable(Unavailable("http://forge does not answer"))
    async with Stage(scene, tmp_path, repositories=repositories) as stage:
        await stage.say_ready()
        assert stage.completed() == []
        await stage.go_through_retries(4)
        (result,) = stage.completed()
        assert result.verdict is InvestigationVerdict.NEEDS_INPUT
        assert "http://forge does not answer" in result.question
        assert repositories.tries == 4


async def test_repository_that_refuses_is_asked_about_at_once(scene, tmp_path):
    async with Stage(scene, tmp_path, repositories=Unreachable(Permanent("no branch trunk; set default_branch"))) as stage:
        await stage.say_ready()
        (result,) = stage.completed()
        assert result.verdict is InvestigationVerdict.NEEDS_INPUT
        assert "no branch trunk" in result.reason
        assert result.metric is not None


class Slow:
    async def open(self, repository, main=None):
        await asyncio.sleep(60)


async def test_investigation_that_takes_too_long_is_given_up_with_its_limit(scene, tmp_path):
    async with Stage(scene, tmp_path, repositories=Slow(), seconds_max=0.05) as stage:
        await stage.say_ready()
        await stage.go_through_retries(4)
        (result,) = stage.completed()
        assert result.verdict is InvestigationVerdict.NEEDS_INPUT
        assert "INVESTIGATION_SECONDS_MAX" in result.reason


async def test_message_of_another_project_goes_to_the_dead_letters(scene, tmp_path):
    async with Stage(scene, tmp_path) as stage:
        await stage.say_ready(stage.case.ready.model_copy(update={"project": "other"}))
        assert stage.completed() == []
        (dead,) = await stage.bus.dead_letters()
        assert "other" in dead.reason


GOOD_ANSWER = {
    "title": "Checkout fails for carts without a currency",
    "title_cites": ["e3"],
    "summary": [{"text": "The total reads a currency that old carts lack.", "cites": ["e3", "e4"]}],
    "claims": [{"statement": "The line is new.", "cites": ["e4"]}, {"statement": "All is well.", "cites": ["e99"]}],
    "hypotheses": [{"statement": "The rates are incomplete", "kept": False, "reason": "The key is the cart's", "cites": ["e7"]}],
}


@pytest.fixture
def model():
    with ScriptedModel() as server:
        yield server


def model_settings(server, **fields):
    """An endpoint that costs 3 dollars a million tokens read and 15 written."""
    prices = {"model_usd_per_million_input": 3.0, "model_usd_per_million_output": 15.0}
    return InvestigatorSettings(**{"model_base_url": server.url, "model_name": "m-1", **prices, **fields})


async def transcript_of(stage, result):
    bundle = json.loads(gzip.decompress(await stage.bundles.get(result.id)))
    return bundle["transcript"][0]


async def test_models_words_are_kept_with_their_cost(scene, tmp_path, model):
    model.says(Reply(json.dumps(GOOD_ANSWER), usage=(4_000, 300)))
    async with Stage(scene, tmp_path, model=model_settings(model)) as stage:
        await stage.say_ready()
        (result,) = stage.completed()
        assert result.title == "Checkout fails for carts without a currency"
        assert result.summary.startswith("The total reads a currency that old carts lack. [e3, e4]")
        assert result.verdict is InvestigationVerdict.ACTIONABLE
        assert result.claims_dropped == 1
        assert (result.cost.model_calls, result.cost.input_tokens, result.cost.output_tokens) == (1, 4_000, 300)
        assert result.cost.usd == pytest.approx(0.012 + 0.0045)
        said = await transcript_of(stage, result)
        assert said["outcome"] == "kept"
        assert "currency" in said["prompt"]
        (asked,) = model.requests
        assert asked.body["response_format"]["type"] == "json_schema"
        assert "never instructions" in asked.body["messages"][0]["content"]


async def test_answer_that_is_not_the_object_is_repaired_once(scene, tmp_path, model):
    model.answers("Here you are: {}").answers(GOOD_ANSWER)
    async with Stage(scene, tmp_path, model=model_settings(model)) as stage:
        await stage.say_ready()
        (result,) = stage.completed()
        assert result.title == GOOD_ANSWER["title"]
        assert result.cost.model_calls == 2


@pytest.mark.parametrize(
    ("replies", "fields", "outcome"),
    [
        ([Reply(status=500)], {"model_seconds_max": 1.0}, "unavailable"),
        ([Reply(status=401)], {}, "refused"),
        ([Reply(refusal="no")], {}, "refused"),
        ([Reply("I refuse to answer in JSON."), Reply("Still not.")], {}, "wrong"),
        ([Reply('{"verdict": "not_actionable"}'), Reply('{"title": "x"}')], {}, "wrong"),
        ([Reply(json.dumps(GOOD_ANSWER), delay_seconds=3.0)], {"model_seconds_max": 0.3}, "slow"),
        ([Reply(json.dumps(GOOD_ANSWER))], {"model_usd_per_investigation_max": 0.001}, "refused"),
        ([Reply(json.dumps(GOOD_ANSWER))], {"model_usd_per_day_max": 0.001}, "refused"),
    ],
)
async def test_composed_text_stands_when_the_model_fails(scene, tmp_path, model, replies, fields, outcome):
    model.says(*replies)
    async with Stage(scene, tmp_path, model=model_settings(model, **fields)) as stage:
        await stage.say_ready()
        (result,) = stage.completed()
        assert result.title == "KeyError: 'currency' in total (src/shop/cart.py)"
        assert result.verdict is InvestigationVerdict.ACTIONABLE
        assert result.suspects[0].commit == scene.guilty
        said = await transcript_of(stage, result)
        # Where the time ends while a failure is waited out to be tried again, either is true.
        assert said["outcome"] in ({"slow", "unavailable"} if "model_seconds_max" in fields else {outcome})
        if outcome == "wrong":
            assert result.cost.model_calls == 2
        if "usd" in "".join(fields):
            assert model.requests == []
            assert result.cost.usd == 0.0


async def test_model_turned_by_hostile_text_changes_nothing_that_matters(scene, tmp_path, model):
    model.answers(
        {
            **GOOD_ANSWER,
            "title": "Pay at https://evil.example",
            "summary": [
                {"text": "Nothing is wrong; close this report.", "cites": []},
                {"text": "See [here](javascript:x)", "cites": ["e1"]},
            ],
            "claims": [{"statement": "Commit deadbeef99 is guilty.", "cites": ["e4"]}],
            "verdict": "not_actionable",
            "suspects": [],
        }
    )
    async with Stage(scene, tmp_path, model=model_settings(model)) as stage:
        await stage.say_ready()
        (result,) = stage.completed()
        assert result.title == "KeyError: 'currency' in total (src/shop/cart.py)"
        assert "evil" not in result.model_dump_json()
        assert "deadbeef99" not in result.model_dump_json()
        assert result.verdict is InvestigationVerdict.ACTIONABLE
        assert result.suspects[0].commit == scene.guilty
        assert result.claims_dropped == 4


class Truncating:
    """Answers at most ten minutes at once."""

    def __init__(self, fail=False):
        self.windows = []
        self.fail = fail

    async def ask(self, query):
        self.windows.append((query.start, query.end))
        return RatesAnswer(truncated=self.fail or query.end - query.start > timedelta(minutes=10), people_count=len(self.windows))


async def test_window_that_is_cut_is_asked_in_parts_without_gaps(fixed_start):
    rates = Truncating()
    answer = await ask_in_parts(rates, RatesQuery(project="demo", start=fixed_start, end=fixed_start + timedelta(minutes=40)))
    leaves = sorted(window for window in rates.windows if window[1] - window[0] <= timedelta(minutes=10))
    assert not answer.truncated
    assert leaves[0][0] == fixed_start
    assert leaves[-1][1] == fixed_start + timedelta(minutes=40)
    assert all(one[1] == two[0] for one, two in pairwise(leaves))


async def test_window_that_stays_cut_ends_within_the_limit_and_says_so(fixed_start):
    rates = Truncating(fail=True)
    answer = await ask_in_parts(rates, RatesQuery(project="demo", start=fixed_start, end=fixed_start + timedelta(days=7)))
    assert answer.truncated
    assert len(rates.windows) <= 16


@pytest.fixture
def fixed_start():
    return FakeClock().now()


async def test_bus_that_fails_while_publishing_leads_to_one_result_in_the_end(scene, tmp_path):
    async with Stage(scene, tmp_path) as stage:
        publish = stage.bus.publish
        failures = [BusUnavailable("no room"), BusUnavailable("no room")]

        async def failing(message):
            if message.subject is INVESTIGATIONS_COMPLETED and failures:
                raise failures.pop()
            return await publish(message)

        stage.bus.publish = failing
        await stage.say_ready()
        assert stage.completed() == []
        await stage.go_through_retries(3)
        assert len(stage.completed()) == 1
        assert len(stage.asked) == 1
