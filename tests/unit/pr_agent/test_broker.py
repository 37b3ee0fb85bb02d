"""The broker over real HTTP: whose token opens what, until when, and how much of the model one run may use."""

from __future__ import annotations

import json
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from loopwright_common.contracts.investigations import Cost
from loopwright_common.model import ModelClient, ModelRole
from loopwright_common.testing.clock import FakeClock
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_common.testing.scripted_model import Reply, ScriptedModel
from loopwright_pr_agent.broker.api import BODY_BYTES_MAX, BrokerServer, broker_app
from loopwright_pr_agent.broker.bundle import BundleTooLarge, write_bundle
from loopwright_pr_agent.broker.records import PodResult, RunRecord, RunRecords
from loopwright_pr_agent.broker.runs import Runs
from loopwright_pr_agent.broker.tokens import Tokens, open_tokens
from loopwright_pr_agent.sandbox.kubernetes.manifest import run_id
from loopwright_pr_agent.sandbox.port import InputFile, RunRequest

NOW = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
KEY = b"k" * 32
DONE = {"outcome": "exited", "exit_code": 0, "output_tail": "ok", "wall_seconds": 1.0, "cpu_seconds": 0.5}


class Door:
    """A broker that listens, and the means to knock."""

    def __init__(self, tmp_path: Path, model: ModelClient | None = None) -> None:
        self.clock, self.tmp_path, self.model = FakeClock(NOW), tmp_path, model
        self.bus = MemoryBus("pr-agent")

    async def open(self) -> Door:
        self.runs = Runs(RunRecords(await self.bus.key_value("pr-agent-runs")), Tokens(KEY), self.clock, self.model)
        self.server = BrokerServer(broker_app(self.runs), "127.0.0.1", 0)
        await self.server.start()
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.server.port}", timeout=20, trust_env=False)
        return self

    async def close(self) -> None:
        await self.client.aclose()
        await self.server.stop()

    async def begin(self, key: str = "acme/chg1/step", generation: int = 1, *, offer: bool = True, model: bool = False) -> tuple[str, str]:
        """A run that is running: its name and its token."""
        run = run_id(key)
        record = RunRecord(key=key, digest="d", generation=generation, deadline=NOW + timedelta(minutes=10), model=model)
        await self.runs.records.create(run, record)
        if offer:
            bundle = self.tmp_path / f"{run}.tar"
            bundle.write_bytes(f"bundle of {key}".encode())
            self.live = self.runs.offer(run, generation, bundle)
        return run, self.runs.tokens.token(run, generation)

    async def get(self, run: str, token: str | None) -> httpx.Response:
        return await self.client.get(f"/v1/runs/{run}/input", headers=bearer(token))

    async def post(self, run: str, token: str | None, body: object = DONE) -> httpx.Response:
        return await self.client.post(f"/v1/runs/{run}/result", headers=bearer(token), json=body)

    async def chat(self, token: str | None, **more: object) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "hello"}], **more}
        return await self.client.post("/v1/chat/completions", headers=bearer(token), json=body)


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}".strip()}


@pytest.fixture
async def door(tmp_path):
    opened = await Door(tmp_path).open()
    yield opened
    await opened.close()


async def test_a_run_gets_its_input_and_its_result_is_stored_and_told(door):
    run, token = await door.begin()
    assert (await door.get(run, token)).content == b"bundle of acme/chg1/step"
    assert (await door.post(run, token)).status_code == 204
    assert door.live.result.result() == PodResult(**DONE)
    kept = await door.runs.records.get(run)
    assert (kept.record.state, kept.record.result) == ("finished", PodResult(**DONE))


async def test_every_wrong_token_is_refused_and_all_refusals_look_alike(door):
    run, token = await door.begin()
    other, others = await door.begin("umbrella/chg9/step")
    over, dead = await door.begin("acme/chg2/step")
    await door.post(over, dead)
    late, expired = await door.begin("acme/chg3/step")
    kept = await door.runs.records.get(late)
    await door.runs.records.update(kept, kept.record.model_copy(update={"deadline": NOW - timedelta(seconds=1)}))
    tried, old = await door.begin("acme/chg4/step", generation=2)
    broken, given_up = await door.begin("acme/chg5/step")
    await door.runs.change(broken, 1, state="broken")
    unknown = run_id("nobody/knows/it")
    cases = {
        "another project's": (run, others),
        "the other way": (other, token),
        "a finished run's": (over, dead),
        "one past its deadline": (late, expired),
        "one of an earlier try": (tried, door.runs.tokens.token(tried, 1)),
        "a broken run's": (broken, given_up),
        "an unknown run's": (unknown, door.runs.tokens.token(unknown, 1)),
        "one made with another key": (run, Tokens(b"x" * 32).token(run, 1)),
        "one with another run in it": (run, token.replace(run, other)),
        "a changed one": (run, token[:-1] + ("0" if token[-1] != "0" else "1")),
        "none": (run, None),
        "an empty one": (run, ""),
        "nonsense": (run, "lwrun_zzz"),
        "a claim": (run, door.runs.tokens.claim(run, 1)),
    }
    answers = {}
    for name, (asked, wrong) in cases.items():
        for answer in (await door.get(asked, wrong), await door.post(asked, wrong)):
            assert answer.headers["content-type"] == "application/problem+json", name
            answers[name] = (answer.status_code, answer.text)
    assert len(set(answers.values())) == 1, answers
    assert next(iter(answers.values()))[0] == 401
    assert (await door.get(run, token)).status_code == 200
    assert (await door.get(tried, old)).status_code == 200


async def test_a_finished_or_foreign_token_cannot_ask_the_model_either(door):
    run, token = await door.begin()
    await door.post(run, token)
    answers = [await door.chat(wrong) for wrong in (token, None, "nonsense", door.runs.tokens.token(run_id("x"), 1))]
    assert {(answer.status_code, answer.text) for answer in answers} == {(401, answers[0].text)}


async def test_the_first_result_stays_whatever_is_sent_after_it(door):
    run, token = await door.begin()
    await door.post(run, token)
    assert (await door.post(run, token, {**DONE, "exit_code": 1})).status_code == 401
    assert (await door.runs.records.get(run)).record.result.exit_code == 0


async def test_a_result_is_taken_also_when_nobody_here_waits_for_it_yet(door):
    run, token = await door.begin(offer=False)
    waiting = await door.get(run, token)
    assert (waiting.status_code, waiting.headers["content-type"]) == (503, "application/problem+json")
    assert "retry-after" in waiting.headers
    assert (await door.post(run, token)).status_code == 204
    assert (await door.runs.records.get(run)).record.state == "finished"


@pytest.mark.parametrize(
    "body",
    [
        {**DONE, "outcome": "flew away"},
        {**DONE, "exit_code": 4_000},
        {**DONE, "wall_seconds": -1},
        {**DONE, "output_tail": "x" * 70_000},
        {**DONE, "diff": "x" * 300_000},
        {**DONE, "exit_code": "not a number"},
        [],
        "text",
    ],
    ids=range(8),
)
async def test_a_result_out_of_bounds_is_a_problem_and_changes_nothing(door, body):
    run, token = await door.begin()
    answer = await door.post(run, token, body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert (await door.runs.records.get(run)).record.state == "running"
    assert (await door.post(run, token)).status_code == 204


async def test_a_body_over_the_limit_is_refused_while_it_arrives(door):
    run, token = await door.begin()

    async def flood():
        for _ in range(BODY_BYTES_MAX // 65_536 + 2):
            yield b"x" * 65_536

    url = f"/v1/runs/{run}/result"
    for content in (b"x" * (BODY_BYTES_MAX + 1), flood()):
        answer = await door.client.post(url, headers=bearer(token), content=content)
        assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
    assert (await door.runs.records.get(run)).record.state == "running"


async def test_a_diff_that_grows_past_a_record_when_written_is_left_out_and_told(door):
    run, token = await door.begin()
    assert (await door.post(run, token, {**DONE, "diff": "\x01" * 250_000})).status_code == 204
    result = (await door.runs.records.get(run)).record.result
    assert (result.diff, result.exit_code) == (None, 0)
    assert "record" in result.no_diff


async def test_nothing_else_is_there(door):
    _, token = await door.begin()
    for path in ("/docs", "/openapi.json", "/metrics", "/v1/models", "/v1/runs", "/"):
        answer = await door.client.get(path, headers=bearer(token))
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path


# The model


@pytest.fixture
async def modelled(tmp_path):
    with ScriptedModel(api_key="the-real-key") as model:
        role = ModelRole(
            name="coding", base_url=model.url, api_key="the-real-key", model="m-1", calls_per_run_max=3, output_tokens_per_run_max=100,
            output_tokens_per_call_max=50, retries_max=0,
        )  # fmt: skip
        client = ModelClient(role)
        opened = await Door(tmp_path, client).open()
        opened.script = model
        yield opened
        await opened.close()
        await client.close()


async def test_the_model_answers_through_the_broker_and_its_key_stays_there(modelled):
    _, token = await modelled.begin(model=True)
    modelled.script.says(Reply("hi", usage=(7, 3)))
    answer = await modelled.chat(token, model="another", max_tokens=10**9, temperature=0.1)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["choices"][0]["message"] == {"role": "assistant", "content": "hi"}
    assert said["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    asked = modelled.script.requests[0]
    assert (asked.body["model"], asked.body["max_tokens"]) == ("m-1", 50)
    assert asked.headers["authorization"] == "Bearer the-real-key"
    assert "the-real-key" not in answer.text + str(answer.headers)


async def test_tool_calls_come_through_in_the_form_of_the_api(modelled):
    _, token = await modelled.begin(model=True)
    modelled.script.calls_tool("read", {"path": "a"})
    tools = [{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}]
    said = (await modelled.chat(token, tools=tools)).json()
    assert said["choices"][0]["finish_reason"] == "tool_calls"
    assert said["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "read", "arguments": '{"path": "a"}'}
    assert modelled.script.requests[0].body["tools"] == tools


async def test_a_run_that_used_its_budget_is_refused_before_the_model_is_asked(modelled):
    _, token = await modelled.begin(model=True)
    modelled.script.answers("1", "2", "3", "4")
    codes = [(await modelled.chat(token)).status_code for _ in range(3)]
    over = await modelled.chat(token)
    assert codes == [200, 200, 200]
    assert (over.status_code, over.headers["content-type"]) == (409, "application/problem+json")
    assert "3 calls" in over.json()["detail"]
    assert len(modelled.script.requests) == 3
    _, another = await modelled.begin("acme/chg2/step", model=True)
    assert (await modelled.chat(another)).status_code == 200


async def test_what_a_run_used_counts_after_a_restart_too(modelled):
    run, token = await modelled.begin(model=True)
    modelled.script.answers("1", "2", "3", "4")
    for _ in range(2):
        await modelled.chat(token)
    await modelled.close()
    await modelled.open()
    assert (await modelled.chat(token)).status_code == 503  # known, and taken up in a moment
    modelled.runs.offer(run, 1, modelled.tmp_path / "none")
    assert (await modelled.runs.records.get(run)).record.cost == Cost(
        **{**(await modelled.runs.records.get(run)).record.cost.model_dump(), "model_calls": 2}
    )
    assert [(await modelled.chat(token)).status_code for _ in range(2)] == [200, 409]


async def test_streams_are_refused_and_so_is_a_run_without_the_model(modelled):
    _, token = await modelled.begin(model=True)
    assert (await modelled.chat(token, stream=True)).status_code == 422
    assert (await modelled.chat(token, n=2)).status_code == 422
    assert (await modelled.chat(token, messages=[])).status_code == 422
    _, plain = await modelled.begin("acme/chg2/step")
    refused = await modelled.chat(plain)
    assert (refused.status_code, "not given" in refused.json()["detail"]) == (409, True)
    assert modelled.script.requests == []


async def test_without_a_model_the_problem_names_the_setting(door):
    _, token = await door.begin(model=True)
    answer = await door.chat(token)
    assert answer.status_code == 409
    assert "LOOPWRIGHT_PR_AGENT_MODEL_BASE_URL" in answer.json()["detail"]


# Tokens and bundles


async def test_a_key_that_nobody_set_is_made_once_and_found_again(tmp_path):
    bucket = await MemoryBus("pr-agent").key_value("runs")
    run = run_id("x")
    first, second = await open_tokens("", bucket), await open_tokens("", bucket)
    assert first.token(run, 1) == second.token(run, 1)
    assert second.read(first.token(run, 3)).generation == 3
    configured = await open_tokens("c" * 32, bucket)
    assert configured.read(first.token(run, 1)) is None
    with pytest.raises(ValueError, match="32"):
        Tokens(b"short")


def bundle_of(folder: Path, out: Path, **more):
    request = RunRequest(("true",), folder, inputs=(InputFile("signals.json", b"[]", "LOOPWRIGHT_SIGNALS"),), **more)
    return write_bundle(request, out, bytes_max=10 * 1024**2, processes_of_user=100, model_seconds=5.0)


def test_the_same_input_is_the_same_bundle_and_another_is_not(tmp_path):
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("a")
    (folder / "run.sh").write_text("x")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("sub/a")
    first = bundle_of(folder, tmp_path / "1.tar")
    (folder / "sub" / "a").touch()
    assert bundle_of(folder, tmp_path / "2.tar").digest == first.digest
    (folder / "sub" / "a").write_text("b")
    assert bundle_of(folder, tmp_path / "3.tar").digest != first.digest
    with tarfile.open(tmp_path / "1.tar") as tar:
        members = {member.name: member for member in tar.getmembers()}
        request = json.load(tar.extractfile("request.json"))
    assert list(members) == [
        "request.json",
        "inputs/signals.json",
        "workspace/link",
        "workspace/run.sh",
        "workspace/sub",
        "workspace/sub/a",
    ]
    assert (members["workspace/run.sh"].mode, members["workspace/link"].linkname) == (0o755, "sub/a")
    assert all((member.uid, member.mtime, member.uname) == (0, 0, "") for member in members.values())
    assert set(request["seccomp"]) == {"x86_64", "aarch64"}


def test_links_that_lead_out_are_left_out_and_named_and_nothing_behind_them_is_read(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (tmp_path / "secret").write_text("do-not-tell")
    for name, target in (("a", "../secret"), ("b", "/etc/passwd"), ("c", "x/../../secret"), ("fine", "a")):
        (folder / name).symlink_to(target)
    (folder / "d").mkdir()
    (folder / "d" / "dir").symlink_to("../..")
    bundle = bundle_of(folder, tmp_path / "1.tar")
    assert bundle.left_out == ("a", "b", "c", "d/dir")
    assert b"do-not-tell" not in bundle.path.read_bytes()


def test_a_repository_over_the_limit_is_refused_by_name(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "big").write_bytes(b"x" * (11 * 1024**2))
    with pytest.raises(BundleTooLarge, match="BUNDLE_BYTES_MAX"):
        bundle_of(folder, tmp_path / "1.tar")
