"""The right commit first, on histories as they are: layouts, languages, renames, merges, squashes, noise."""

from __future__ import annotations

from loopwright_common.contracts.investigations import InvestigationVerdict

CART = '''"""Carts."""

from decimal import Decimal


def lines(cart):
    return [line for line in cart["lines"] if line["quantity"] > 0]


def total(cart, rates):
    amount = Decimal(0)
    for line in lines(cart):
        amount += line["price"] * line["quantity"]
    return amount


def describe(cart):
    return f"{len(lines(cart))} lines"
'''
GUILTY_CART = CART.replace(
    """        amount += line["price"] * line["quantity"]
""",
    """        rate = rates[line["currency"]]
        amount += line["price"] * line["quantity"] * rate
""",
)


def history(repo, prefix="src/shop"):
    """A small package with a guilty commit between innocent ones. Gives (good, guilty, bad)."""
    cart, api = f"{prefix}/cart.py", f"{prefix}/api.py"
    repo.commit(
        "Begin",
        {
            cart: CART,
            f"{prefix}/__init__.py": "",
            api: "from shop import cart\n\n\ndef checkout(request):\n    return cart.total(request.cart, {})\n",
        },
    )
    good = repo.commit("Say how many lines a cart has", {cart: repo.files["main"][cart].replace('lines"', 'lines in it"')}, author="Bob")
    repo.commit("Explain the build", {"README.md": "# Shop\n"}, author="Carol")
    guilty = repo.commit("Convert prices to the shop's currency", {cart: GUILTY_CART.replace('lines"\n', 'lines in it"\n')}, author="Dave")
    repo.commit("Speak of items", {cart: repo.files["main"][cart].replace('lines in it"', 'items"')}, author="Bob")
    bad = repo.commit("Answer with a status", {api: repo.files["main"][api] + "\n\ndef health():\n    return 200\n"}, author="Carol")
    return good, guilty, bad


def crash(scene, repo, frame, release, file="/app/src/shop/cart.py", path="src/shop/cart.py", **fields):
    number = repo.line_of(path, 'rates[line["currency"]]')
    return scene.signal(
        [
            frame("/usr/lib/python3.11/wsgiref/handlers.py", 137, "run", in_app=False),
            frame(file.replace("cart.py", "api.py"), 5, "checkout", "    return cart.total(request.cart, {})"),
            frame(file, number, "total", '        rate = rates[line["currency"]]'),
        ],
        release=release, exception_type="KeyError", exception_value="'currency'", transaction="/checkout", **fields,
    )  # fmt: skip


async def test_commit_that_wrote_the_raising_line_is_first_and_its_revert_is_proposed(new_repo, new_scene, frame):
    repo = new_repo()
    good, guilty, bad = history(repo)
    scene = new_scene(repo)
    scene.deploy("1.0", good)
    scene.deploy("1.1", bad)
    crash(scene, repo, frame, "1.1")
    result, found = await scene.investigate()
    assert result.suspects[0].commit == guilty
    assert result.verdict is InvestigationVerdict.ACTIONABLE, result.reason
    assert found.judgement.revert is not None
    assert found.judgement.revert.files == ("src/shop/cart.py",)
    assert result.suspects[0].score > 2 * result.suspects[1].score
    assert result.title == "KeyError: 'currency' in total (src/shop/cart.py)"
    assert result.suspect_lines[0].file == "src/shop/cart.py"
    assert 'rates[line["currency"]]' in result.suspect_lines[0].text
    assert result.claims_dropped == 0
    assert all(set(claim.cites) <= {each.id for each in result.evidence} and claim.cites for claim in result.claims)
    assert result.base_commit == bad
    print(result.summary)
    for each in result.evidence:
        print(each.id, each.kind, each.question, "->", each.answer)
