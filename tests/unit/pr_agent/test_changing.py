"""From a request to a merge, with real git, a real sandbox and the forge as a process of its own."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from loopwright_common.contracts.changes import (
    Change,
    ChangeClosed,
    ChangeFailed,
    ChangeMerged,
    ChangeProgress,
    CommandRefused,
    ProofLevel,
)
from loopwright_pr_agent.adapters.publisher_process import PublisherProcess
from loopwright_pr_agent.policy import DiffLimits
from loopwright_repositories.errors import ForgeUnavailable
from loopwright_repositories.forges.port import Person


async def test_a_revert_is_proven_twice_and_opened_as_a_draft(stage, guilty):
    await stage.start()
    await stage.ask(stage.request(guilty))
    change = await stage.heard(Change)
    assert change.proof is ProofLevel.REPRODUCED, change.proof_reason
    assert change.reverts == guilty
    assert change.files == ("shop.py",)
    assert change.pull_request.draft
    steps = {run.step: run.exit_code for run in change.runs}
    assert steps == {
        "baseline.reproduce": 1, "changed.reproduce": 0, "changed.test": 0,
        "verify.baseline.reproduce": 1, "verify.changed.reproduce": 0, "verify.changed.test": 0,
    }  # fmt: skip
    assert change.cost.wall_seconds > 0
    await asyncio.sleep(1)  # the poll sees what it expects and says nothing
    assert len([fact for fact in stage.said if type(fact) is Change]) == 1
    async with stage.forge() as forge:
        pull = await forge.get_pull_request(stage.name, change.pull_request.number)
        assert pull.head.startswith("loopwright/rep1-zerodivisionerror")
        checks = await forge.list_check_runs(stage.name, pull.head_commit)
        assert {check.name: check.conclusion for check in checks} == {
            "loopwright/reproduction": "success", "loopwright/tests": "success", "loopwright/diff-policy": "success",
        }  # fmt: skip
        assert len(await forge.list_comments(stage.name, pull.number)) == 1
        for hostile in ("<img", "<b>", "@everyone", "@admin", "@team", "![x](", "http://evil"):
            assert hostile not in pull.body, hostile
        assert "e1" in pull.body
    assert {"exported", "reproduced", "fixed", "verifying", "opened"} <= {fact.step for fact in stage.said if type(fact) is ChangeProgress}


async def test_a_merge_is_carried_out_in_the_persons_name_and_said_once(stage, guilty):
    await stage.start()
    await stage.ask(stage.request(guilty))
    change = await stage.heard(Change)
    await stage.command("chg1", "merge", expected_head=change.pull_request.head_commit)
    merged = await stage.heard(ChangeMerged)
    assert merged.merged_by == "person:ada"
    assert merged.service == "checkout"
    assert merged.investigation.metric.query == "errors"
    async with stage.forge() as forge:
        pull = await forge.get_pull_request(stage.name, change.pull_request.number)
        assert pull.state == "merged"
        assert pull.merge_commit == merged.merge_commit
        assert "Ada" in pull.merged_by
    await asyncio.sleep(1)
    assert len([fact for fact in stage.said if type(fact) is ChangeMerged]) == 1
    await stage.command("chg1", "decline", "cmd2")
    assert "already merged" in (await stage.heard(CommandRefused)).reason


async def test_a_merge_of_a_head_that_moved_is_refused(stage, guilty, repository, forge_server):
    await stage.start()
    await stage.ask(stage.request(guilty))
    await stage.heard(Change)
    await stage.command("chg1", "merge", expected_head="a" * 40)
    refused = await stage.heard(CommandRefused)
    assert "look again" in refused.reason
    async with stage.forge() as forge:
        assert (await forge.list_pull_requests(stage.name))[0].state == "open"


async def test_declining_closes_the_pull_request_with_the_reason(stage, guilty):
    await stage.start()
    await stage.ask(stage.request(guilty))
    await stage.heard(Change)
    await stage.command("chg1", "request_changes", "cmd0", comment="please @all keep <b>it</b>")
    await stage.command("chg1", "decline", comment="we want the average")
    closed = await stage.heard(ChangeClosed)
    assert (closed.closed_by, closed.reason) == ("person:ada", "we want the average")
    async with stage.forge() as forge:
        pull = (await forge.list_pull_requests(stage.name))[0]
        assert pull.state == "closed"
        comments = await forge.list_comments(stage.name, pull.number)
        assert any("Changes requested by Ada Lovelace" in comment.body and "<b>" not in comment.body for comment in comments)


async def test_what_people_do_on_the_forge_is_noticed(stage, guilty):
    await stage.start()
    await stage.ask(stage.request(guilty))
    change = await stage.heard(Change)
    async with stage.forge() as forge:
        await forge.set_check_run(stage.name, change.pull_request.head_commit, "ci/build", status="completed", conclusion="success")
        updated = await stage.heard(Change, count=2)
        assert "ci/build" in {check.name for check in updated.checks}
        await forge.mark_ready(stage.name, change.pull_request.number)
        await forge.merge(stage.name, change.pull_request.number, person=Person(name="Grace", email="grace@example.org"))
    merged = await stage.heard(ChangeMerged)
    assert "Grace" in merged.merged_by


async def test_the_same_request_again_says_the_outcome_again_and_opens_nothing(stage, guilty):
    service = await stage.start()
    await stage.ask(stage.request(guilty))
    await stage.heard(Change)
    await stage.ask(stage.request(guilty), again="2")
    await asyncio.sleep(1.5)
    async with stage.forge() as forge:
        assert len(await forge.list_pull_requests(stage.name)) == 1
    assert service.changing is not None


class DyingPublisher:
    """The real publisher, whose service dies at one of its steps: before the push, after it, or after the pull request is there."""

    def __init__(self, real: PublisherProcess, point: str) -> None:
        self.real, self.point, self.deaths = real, point, 0

    def __getattr__(self, name):
        return getattr(self.real, name)

    async def publish(self, publication):
        if self.deaths:
            return await self.real.publish(publication)
        self.deaths += 1
        if self.point == "after push":
            # The branch is there, the pull request is not: as when the publisher is killed between the two.
            from loopwright_pr_agent.publisher import OURSELVES
            from loopwright_repositories.checkout import Checkout
            from loopwright_repositories.git import GitCredential
            from loopwright_repositories.publishing import push_diff
            from pydantic import SecretStr

            change = publication.change
            message = f"{change.title}\n\nProof: {change.proof.value}. {change.proof_reason[:500]}\n\nLoopwright-Change: {change.id}\n"
            from datetime import datetime
            from pathlib import Path

            await push_diff(
                Checkout(Path(publication.mirror), change.repository), base=change.base_commit, diff=change.diff, message=message,
                person=OURSELVES, at=datetime.fromisoformat(publication.committed_at),
                url=f"{self.real.forge_url}/git/{change.repository}.git", branch=publication.branch,
                credential=GitCredential(SecretStr(self.real.write_token_file.read_text())),
            )  # fmt: skip
        elif self.point == "after open":
            await self.real.publish(publication)
        raise ForgeUnavailable(f"killed {self.point}")


@pytest.mark.parametrize("point", ["before push", "after push", "after open"])
async def test_a_crash_while_publishing_opens_one_pull_request(stage, guilty, point):
    settings = stage.settings
    real = PublisherProcess(settings.forge_url, settings.forge_write_token_file, settings.forge_merge_token_file, DiffLimits())
    dying = DyingPublisher(real, point)
    await stage.start(dying)
    await stage.ask(stage.request(guilty))
    change = await stage.heard(Change, seconds=90)
    assert dying.deaths == 1
    async with stage.forge() as forge:
        pulls = await forge.list_pull_requests(stage.name)
        assert [pull.number for pull in pulls] == [change.pull_request.number]
        assert len(await forge.list_comments(stage.name, pulls[0].number)) == 1
    assert len([fact for fact in stage.said if type(fact) is Change]) == 1


async def test_a_service_that_is_killed_while_it_works_begins_again_and_opens_one(stage, guilty):
    first = await stage.start()
    await stage.ask(stage.request(guilty))
    await stage.heard(ChangeProgress)
    await first.stop(timedelta(0))  # takes its consumers away in mid-work and gives the message back, as the server does after a kill
    assert not [fact for fact in stage.said if type(fact) is Change]
    stage.reconnect()
    await stage.begin()
    await stage.start()
    change = await stage.heard(Change, seconds=90)
    async with stage.forge() as forge:
        assert [pull.number for pull in await forge.list_pull_requests(stage.name)] == [change.pull_request.number]


async def test_a_revert_that_conflicts_names_the_files(stage, guilty, repository):
    repository.commit("Build on it", shop_py=BAD.replace("sum(items) /", "round(sum(items)) /"))
    await stage.start()
    await stage.ask(stage.request(guilty))
    failed = await stage.heard(ChangeFailed)
    assert "conflicts" in failed.reason
    assert "shop.py" in failed.reason
    assert failed.missing.endswith("?")


async def test_a_failure_that_does_not_happen_on_main_is_not_fixed(stage, repository):
    repository.commit("Sell things", shop_py=GOOD_SHOP, test_shop_py="def test():\n    pass\n", replay_py=PASSING, manifest=MANIFEST)
    innocent = repository.commit("Say hello", README="hello\n")
    await stage.start()
    await stage.ask(stage.request(innocent))
    failed = await stage.heard(ChangeFailed)
    assert "does not happen on the current main" in failed.reason
    assert [run.step for run in failed.runs] == ["baseline.reproduce"]


async def test_the_wrong_suspect_is_not_proposed(stage, repository, guilty):
    innocent = repository.git("rev-parse", "HEAD")
    await stage.start()
    await stage.ask(stage.request(innocent))
    failed = await stage.heard(ChangeFailed)
    assert "still there after reverting" in failed.reason


async def test_a_change_that_breaks_the_tests_is_not_proposed(stage, repository, guilty):
    repository.commit(
        "Expect a fraction", test_extra_py="from shop import total\n\n\ndef test_type():\n    assert type(total([2])) is float\n"
    )
    await stage.start()
    await stage.ask(stage.request(guilty))
    failed = await stage.heard(ChangeFailed)
    assert "tests pass on the current main and fail with the change" in failed.reason


async def test_a_replay_that_cannot_run_leaves_tests_only(stage, repository, guilty):
    repository.commit("Break the replay", replay_py="raise SystemExit(2)\n")
    await stage.start()
    await stage.ask(stage.request(guilty))
    change = await stage.heard(Change)
    assert change.proof is ProofLevel.TESTS_ONLY
    assert "could not be replayed" in change.proof_reason


async def test_protected_paths_are_left_to_people(stage, repository, guilty):
    workflow = repository.commit("Add CI", **{".github__workflows__ci_yaml": "on: push\n"})
    await stage.start()
    await stage.ask(stage.request(workflow))
    failed = await stage.heard(ChangeFailed)
    assert "is protected" in failed.reason


async def test_without_a_suspect_or_with_feedback_a_person_is_asked(stage, guilty):
    await stage.start()
    await stage.ask(stage.request(None))
    assert "no suspect" in (await stage.heard(ChangeFailed)).reason
    await stage.ask(stage.request(guilty, "chg2", attempt=2, feedback=("keep the average",)))
    assert "keep the average" in (await stage.heard(ChangeFailed, count=2)).reason


async def test_without_a_write_token_the_change_fails_naming_the_variable(stage, guilty):
    stage.settings.forge_write_token_file.unlink()
    async with stage.forge() as forge:
        await forge.ensure_repository(stage.name, source=str(stage.source))
    await stage.start()
    await stage.ask(stage.request(guilty))
    failed = await stage.heard(ChangeFailed)
    assert "LOOPWRIGHT_PR_AGENT_FORGE_WRITE_TOKEN_FILE" in failed.reason
    assert json.dumps(failed.reason).count("token-0123") == 0


MANIFEST = "version: 1\ntest: PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -q -p no:cacheprovider\nreproduce: python replay.py\n"
BAD = "def total(items):\n    return sum(items) / len(items) * len(items)\n\n\ndef name():\n    return 'shop'\n"
GOOD_SHOP = "def total(items):\n    return sum(items)\n"
PASSING = "raise SystemExit(0)\n"
