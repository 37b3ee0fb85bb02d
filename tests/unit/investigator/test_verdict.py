"""When a commit is proposed for revert, when somebody is asked, and what exactly is asked."""

from __future__ import annotations

from datetime import timedelta

from loopwright_common.contracts.investigations import InvestigationVerdict
from loopwright_common.contracts.signals import Severity, SignalKind

NEEDS_INPUT = InvestigationVerdict.NEEDS_INPUT


def asks(result, *words):
    """One question that says what is missing, with a reason."""
    assert result.verdict is NEEDS_INPUT, result.reason
    assert result.reason
    assert result.question.count("?") == 1, result.question
    for word in words:
        assert word in f"{result.reason} {result.question}", f"{result.reason} | {result.question}"
    return True


async def test_report_of_an_unknown_service_asks_for_its_repository(new_repo, new_scene, shop):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo, with_repository=False), good, bad)
    shop.crash(scene, "1.1")
    result, _ = await scene.investigate()
    assert asks(result, "no repository is configured for shop", "Which repository")
    assert result.suspects == ()
    assert result.metric is not None


async def test_frames_that_lead_nowhere_are_asked_about_with_an_example(new_repo, new_scene, shop, frame):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    scene.signal([frame("/opt/legacy/billing/engine.py", 4, "run"), frame("/opt/legacy/billing/tax.py", 9, "vat")], release="1.1")
    result, _ = await scene.investigate()
    assert asks(result, "no stack frame maps to a file of code", "/opt/legacy/billing")


async def test_minified_frames_ask_for_source_maps(new_repo, new_scene, shop, frame):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    scene.signal([frame("https://shop.example/static/js/main.3fa2b9c1.js", 1, "t", "")], release="1.1")
    result, _ = await scene.investigate()
    assert asks(result, "source map")


async def test_unknown_release_asks_which_commit_was_running_but_still_lists_suspects(new_repo, new_scene, shop):
    repo = new_repo()
    _, guilty, _ = shop.history(repo)
    scene = new_scene(repo)
    shop.crash(scene, "nightly-7")
    result, _ = await scene.investigate()
    assert asks(result, "nightly-7", "Which commit of code was running")
    assert result.suspects[0].commit == guilty


async def test_no_release_at_all_asks_which_commit_was_running(new_repo, new_scene, shop):
    repo = new_repo()
    shop.history(repo)
    scene = new_scene(repo)
    shop.crash(scene, "")
    result, _ = await scene.investigate()
    assert asks(result, "names a release", "Which commit of code was running")


async def test_two_commits_in_the_same_lines_are_both_named_in_the_question(new_repo, new_scene, shop, frame):
    cart = "shop/cart.py"
    code = "def share(cart):\n    parts = cart.parts\n    return cart.amount / parts\n\n\ndef other():\n    return 1\n"
    repo = new_repo()
    good = repo.commit("Begin", {cart: code})
    one = repo.commit("Count parts anew", {cart: code.replace("cart.parts", "len(cart.pieces)")}, author="Dave")
    two = repo.commit(
        "Drop the surplus", {cart: repo.text(cart).replace("len(cart.pieces)", "len(cart.pieces) - cart.spare")}, author="Erin"
    )
    two = repo.commit(
        "Net amounts", {cart: repo.text(cart).replace("def share(cart):\n", "def share(cart):\n    cart = cart.net\n")}, author="Erin"
    )
    scene = shop.deployed(new_scene(repo), good, two)
    scene.signal([frame("shop/cart.py", 4, "share")], release="1.1", exception_type="ZeroDivisionError", exception_value="division by zero")
    result, _ = await scene.investigate()
    assert asks(result, "two commits fit about equally")
    assert one not in [suspect.commit for suspect in result.suspects[:1]] or result.suspects[0].score < 0.6


async def test_release_without_a_change_of_code_asks_what_else_changed(new_repo, new_scene, shop):
    repo = new_repo()
    _, _, bad = shop.history(repo)
    scene = new_scene(repo)
    scene.deploy("1.1", bad)
    scene.deploy("1.1-config", bad)
    shop.crash(scene, "1.1-config")
    result, found = await scene.investigate()
    assert asks(result, "What else changed", "configuration")
    assert found.suspects.window_known


async def test_old_faulty_line_that_begins_to_fail_accuses_nobody(new_repo, new_scene, shop):
    repo = new_repo()
    cart = "src/shop/cart.py"
    old = repo.commit("Begin", {cart: shop.GUILTY, "src/shop/api.py": shop.API})
    good = repo.commit("Explain", {"README.md": "# Shop\n"})
    bad = repo.commit("Describe better", {cart: shop.GUILTY.replace(' lines"', ' positions"')}, author="Bob")
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    result, _ = await scene.investigate()
    assert asks(result)
    assert any(
        old[:7] in hypothesis.statement and "live before" in hypothesis.reason for hypothesis in result.hypotheses if not hypothesis.kept
    )


async def test_suspect_that_later_code_uses_is_not_taken_back(new_repo, new_scene, shop):
    repo = new_repo()
    cart, good_text = "src/shop/cart.py", shop.CART
    good = repo.commit("Begin", {cart: good_text, "src/shop/api.py": shop.API})
    guilty_text = shop.GUILTY + "\n\ndef rate_of(rates, line):\n    return rates[line['currency']]\n"
    guilty = repo.commit("Convert", {cart: guilty_text}, author="Dave")
    bad = repo.commit("Print rates", {"src/shop/print.py": "from shop.cart import rate_of\n\n\ndef show(x):\n    return rate_of({}, x)\n"})
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    result, found = await scene.investigate()
    assert result.suspects[0].commit == guilty
    assert asks(result, "rate_of", "src/shop/print.py")
    assert found.judgement.revert.clean


async def test_conflicting_revert_names_the_file(new_repo, new_scene, shop):
    repo = new_repo()
    good, guilty, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    cart = "src/shop/cart.py"
    repo.commit("Round amounts", {cart: repo.text(cart).replace('line["quantity"] * rate', 'line["quantity"] * round(rate, 4)')}, minutes=1)
    result, _ = await scene.investigate()
    assert result.suspects[0].commit == guilty
    assert asks(result, "cannot take it back", cart) or result.verdict is InvestigationVerdict.ALREADY_ADDRESSED


async def test_database_migration_is_never_reverted_unasked(new_repo, new_scene, shop):
    repo = new_repo()
    cart = "src/shop/cart.py"
    good = repo.commit("Begin", {cart: shop.CART, "src/shop/api.py": shop.API})
    bad = repo.commit("Convert", {cart: shop.GUILTY, "src/shop/migrations/0002_currency.py": "operations = []\n"})
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    result, _ = await scene.investigate()
    assert asks(result, "migration", "0002_currency.py")


async def test_protected_path_is_never_reverted_unasked(new_repo, new_scene, shop):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo, protected=("src/shop/cart.py",)), good, bad)
    shop.crash(scene, "1.1")
    result, _ = await scene.investigate()
    assert asks(result, "protected", "src/shop/cart.py")


async def test_suspect_taken_back_on_main_is_already_addressed(new_repo, new_scene, shop):
    repo = new_repo()
    good, guilty, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    cart = "src/shop/cart.py"
    undo = repo.revert(
        guilty, {cart: repo.text(cart).replace(shop.CONVERTED, shop.PRICED)}, "Convert prices to the shop's currency", minutes=1
    )
    result, _ = await scene.investigate()
    assert result.verdict is InvestigationVerdict.ALREADY_ADDRESSED
    assert undo[:7] in result.reason
    assert "not deployed yet" in result.reason
    assert result.confidence >= 0.9


async def test_fix_of_the_raising_line_on_main_is_already_addressed(new_repo, new_scene, shop):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    cart = "src/shop/cart.py"
    fix = repo.commit(
        "Fix carts without a currency", {cart: repo.text(cart).replace(shop.RAISING, 'rates.get(line.get("currency"), 1)')}, minutes=1
    )
    result, _ = await scene.investigate()
    assert result.verdict is InvestigationVerdict.ALREADY_ADDRESSED
    assert fix[:7] in result.reason
    assert 0.7 <= result.confidence < 0.95


async def test_formatting_of_the_raising_line_on_main_addresses_nothing(new_repo, new_scene, shop):
    repo = new_repo()
    good, guilty, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    repo.commit("Fix style", {"src/shop/cart.py": repo.text("src/shop/cart.py").replace("rates[line", "rates[ line")}, minutes=1)
    result, _ = await scene.investigate()
    assert result.verdict is not InvestigationVerdict.ALREADY_ADDRESSED
    assert result.suspects[0].commit == guilty


async def test_problem_that_ended_with_a_later_release_is_already_addressed(new_repo, new_scene, shop):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    later = repo.commit("Other work", {"src/shop/x.py": "x = 1\n"}, minutes=1)
    scene.deploy("1.2", later, requests=5_000)
    result, _ = await scene.investigate()
    assert result.verdict is InvestigationVerdict.ALREADY_ADDRESSED
    assert "not seen since 1.2" in result.reason


async def test_quiet_release_that_was_hardly_used_proves_nothing(new_repo, new_scene, shop):
    repo = new_repo()
    good, guilty, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    scene.deploy("1.2", repo.commit("Other work", {"src/shop/x.py": "x = 1\n"}, minutes=1), requests=20)
    result, _ = await scene.investigate()
    assert result.verdict is InvestigationVerdict.ACTIONABLE, result.reason
    assert result.suspects[0].commit == guilty


async def test_informational_signals_are_not_actionable(new_repo, new_scene, shop):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    scene.signal(kind=SignalKind.LOG, severity=Severity.INFO, title="cache warmed in 20 ms", release="1.1")
    result, _ = await scene.investigate()
    assert result.verdict is InvestigationVerdict.NOT_ACTIONABLE
    assert result.reason


async def test_missing_rates_are_said_and_do_not_stop_the_investigation(new_repo, new_scene, shop):
    repo = new_repo()
    good, guilty, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo, rates=False), good, bad)
    shop.crash(scene, "1.1")
    result, _ = await scene.investigate()
    assert result.suspects[0].commit == guilty
    assert "Not checked: exact rates" in result.summary
    assert result.metric.exposure_unit == "time"
    assert result.metric.baseline_end - result.metric.baseline_start < timedelta(hours=1)


async def test_history_of_one_commit_has_nothing_to_take_back(new_repo, new_scene, shop):
    repo = new_repo()
    only = repo.commit("Begin", {"src/shop/cart.py": shop.GUILTY, "src/shop/api.py": shop.API})
    scene = new_scene(repo)
    scene.deploy("1.0", only)
    shop.crash(scene, "1.0")
    result, _ = await scene.investigate()
    assert asks(result)
    assert result.confidence <= 1.0


async def test_answer_that_names_the_running_release_is_taken_as_the_release_not_as_the_suspect(new_repo, new_scene, shop):
    repo = new_repo()
    _, guilty, bad = shop.history(repo)
    repo.tag("v1.1", bad)
    for said in (f"We were running {bad[:9]}.", "v1.1, since noon"):
        scene = new_scene(repo, input=(said,))
        shop.crash(scene, "nightly-7")
        result, found = await scene.investigate()
        assert found.onset.bad.commit == bad
        assert "Which commit of code was running" not in result.question
        assert result.suspects[0].commit == guilty
        assert not found.suspects.candidates[0].named_by_person


async def test_answer_that_names_the_function_helps_where_frames_lead_nowhere(new_repo, new_scene, shop, frame):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo, input=("It is in src/shop/cart.py, total()",)), good, bad)
    scene.signal([frame("/opt/legacy/billing/engine.py", 4, "run")], release="1.1")
    result, found = await scene.investigate()
    assert found.located.locations[0].path == "src/shop/cart.py"
    assert "no stack frame maps" not in result.reason
