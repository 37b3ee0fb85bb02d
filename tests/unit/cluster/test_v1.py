"""Join or open: several kinds of signal about one problem meet, and problems that merely look alike stay apart."""

import random
import time

import numpy as np
import pytest
from loopwright_cluster.adapters.qdrant_edge import QdrantEdgeIndex
from loopwright_cluster.domain import Exemplar, Match, Outcome
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_cluster.grouping.anchors import anchors_of
from loopwright_cluster.grouping.describe import describe
from loopwright_cluster.grouping.fingerprints import fingerprint
from loopwright_cluster.grouping.v1 import Surroundings, decide
from loopwright_cluster.neighbourhood import Neighbourhood


async def group(signals, embedding, index):
    """Report id by signal id, each signal decided on its own and stored before the next."""

    async def standing(exemplar):
        return exemplar.report_id, False

    placed, reasons = {}, {}
    for signal in signals:
        newcomer = describe(signal, fingerprint(signal))
        (vector,) = await embedding.embed([newcomer.text])
        hood = Neighbourhood(index, degraded=embedding.degraded)
        decision = decide(newcomer, await hood.around(newcomer, vector, standing))
        report_id = decision.report_id or f"report-of-{signal.id}"
        await index.upsert([newcomer.in_report(report_id)], np.stack([vector]))
        placed[signal.id], reasons[signal.id] = report_id, decision.reason
    return placed, reasons


def wrongly_merged(rows, placed):
    pairs = [(one, other) for one in rows for other in rows if one[1].id < other[1].id]
    return [(one.id, other.id) for (group_a, one), (group_b, other) in pairs if group_a != group_b and placed[one.id] == placed[other.id]]


def told_apart(rows, placed):
    pairs = [(one, other) for one in rows for other in rows if one[1].id < other[1].id]
    return [(one.id, other.id) for (group_a, one), (group_b, other) in pairs if group_a == group_b and placed[one.id] != placed[other.id]]


@pytest.mark.parametrize("part", ["settings_were_set_on", "held_out"])
async def test_what_different_kinds_of_signal_say_of_one_problem_lands_in_one_report(part, incidents, minilm, tmp_path):
    missed = pairs = 0
    for number, (domain, rows) in enumerate(incidents[part]):
        index = QdrantEdgeIndex(tmp_path / str(number), 384)
        placed, reasons = await group([signal for _, signal in sorted(rows, key=lambda row: row[1].occurred_at)], minilm, index)
        await index.close()
        assert wrongly_merged(rows, placed) == [], (domain, reasons)
        missed += len(told_apart(rows, placed))
        pairs += sum(1 for one in rows for other in rows if one[1].id < other[1].id and one[0] == other[0])
    assert missed / pairs <= 0.15, f"{missed} of {pairs} pairs were missed"


async def test_no_order_of_arrival_merges_two_problems_and_the_shop_is_whole_in_every_order(incidents, minilm, tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    shuffler = random.Random(seed)
    for number, (domain, rows) in enumerate(incidents["settings_were_set_on"] + incidents["held_out"]):
        for turn in range(3):
            signals = [signal for _, signal in rows]
            shuffler.shuffle(signals)
            index = QdrantEdgeIndex(tmp_path / f"{number}-{turn}", 384)
            placed, reasons = await group(signals, minilm, index)
            await index.close()
            assert wrongly_merged(rows, placed) == [], (domain, reasons)
            if domain.startswith("shop"):
                assert told_apart(rows, placed) == [], (domain, reasons)


async def test_incidents_of_all_domains_in_one_project_are_not_mixed(incidents, minilm, tmp_path):
    rows = [
        (f"{domain}: {group_name}", signal.model_copy(update={"id": f"{number}-{signal.id}"}))
        for number, (domain, entries) in enumerate(incidents["settings_were_set_on"] + incidents["held_out"])
        for group_name, signal in entries
    ]
    index = QdrantEdgeIndex(tmp_path / "all", 384)
    placed, reasons = await group([signal for _, signal in sorted(rows, key=lambda row: (row[1].occurred_at, row[1].id))], minilm, index)
    await index.close()

    wrong = wrongly_merged(rows, placed)
    assert wrong == [], [(pair, reasons[pair[1]]) for pair in wrong]


async def test_without_the_model_nothing_is_merged_wrongly_either(incidents, tmp_path):
    for number, (domain, rows) in enumerate(incidents["settings_were_set_on"] + incidents["held_out"]):
        index = QdrantEdgeIndex(tmp_path / str(number), 384)
        placed, reasons = await group([signal for _, signal in rows], HashingEmbedding(), index)
        await index.close()
        assert wrongly_merged(rows, placed) == [], (domain, reasons)


def exemplar(name="one", **fields):
    base = {
        "project": "shop", "fingerprint": f"fp-{name}", "report_id": f"r-{name}", "signal_id": f"s-{name}", "kind": "exception",
        "service": "web", "occurred_at": 1_000.0, "title": f"title of {name}", "text": "text", "exception_type": "KeyError",
        "frames": ("app.py:dispatch", "cart.py:total"), "anchors": {"cart": 1.0, "total": 1.0, "checkout": 1.0},
    }  # fmt: skip
    return Exemplar(**{**base, **fields})


def judge(newcomer, *neighbours, cosine=0.6, **around):
    return decide(newcomer, Surroundings([Match(item, cosine) for item in neighbours], **around))


def ticket(name="ticket", **fields):
    return exemplar(name, **{"kind": "ticket", "exception_type": "", "frames": (), **fields})


def test_with_nothing_around_it_opens_and_says_so():
    decision = judge(exemplar())
    assert (decision.outcome, decision.report_id) == (Outcome.OPEN, None)
    assert decision.reason == "nothing like it is known in this project"


def test_a_joining_signal_says_with_whom_and_why_in_figures():
    decision = judge(ticket(), exemplar(), cosine=0.52)
    assert (decision.outcome, decision.report_id) == (Outcome.JOIN, "r-one")
    for part in ("ticket", "exception", "title of one", "cart, checkout, total", "0.52", "0 s apart", "≥ 0.50"):
        assert part in decision.reason


def test_a_reason_says_the_words_that_were_said_and_whose_service_it_was():
    names = {"price": 1.0, "apply_discount": 1.0, "/pay": 1.0}
    said = {"title": "Wrong prices after the voucher", "text": "in apply_discounts", "anchors": names}
    raised = exemplar(anchors=names)
    reason = judge(ticket(**said), raised).reason
    assert "both name /pay, apply_discounts, prices (weight" in reason
    assert "of the same service (web) at" in reason
    assert "(only one of them names a service, web) at" in judge(ticket(service="", **said), raised).reason
    assert "(neither names a service) at" in judge(ticket(service="", **said), exemplar(service="", anchors=names)).reason


@pytest.mark.parametrize(
    ("service", "joins"),
    [("Web", True), ("web-api", True), ("web_service", True), ("web-worker", False), ("web-admin", False), ("api", False)],
)
def test_a_service_may_be_named_as_its_deployment_is_where_more_agrees(service, joins):
    decision = judge(exemplar("alert", kind="alert", exception_type="", frames=(), service=service), exemplar())
    assert (decision.outcome is Outcome.JOIN) is joins
    assert not joins or f"of web, nearly the same name as {service}, at" in decision.reason
    weak = {"cart": 0.5, "other": 0.5}
    assert judge(ticket(service=service, anchors=weak), exemplar(), cosine=0.4).outcome is Outcome.OPEN
    assert judge(exemplar("again", service=service), exemplar(), cosine=1.0).outcome is Outcome.OPEN  # of one kind: another place


def test_another_service_never_joins():
    assert judge(ticket(service="search"), exemplar()).outcome is Outcome.OPEN


def test_a_signal_that_names_no_service_needs_more_agreement():
    weak = {"cart": 0.5, "other": 0.5}
    assert judge(ticket(anchors=weak), exemplar(), cosine=0.4).outcome is Outcome.JOIN
    assert judge(ticket(service="", anchors=weak), exemplar(), cosine=0.4).outcome is Outcome.OPEN
    assert judge(ticket(service=""), exemplar()).outcome is Outcome.JOIN


def test_two_kinds_join_only_within_their_window():
    hour = 3_600.0
    alert = exemplar("alert", kind="alert", exception_type="", frames=())
    assert judge(alert, exemplar(occurred_at=1_000.0 + 1.5 * hour)).outcome is Outcome.JOIN
    assert judge(alert, exemplar(occurred_at=1_000.0 + 2.5 * hour)).outcome is Outcome.OPEN
    assert judge(ticket(), exemplar(occurred_at=1_000.0 - 20 * hour)).outcome is Outcome.JOIN
    assert judge(ticket(), exemplar(occurred_at=1_000.0 - 25 * hour)).outcome is Outcome.OPEN


def test_a_name_that_many_reports_share_counts_for_little():
    words = {"checkout": 1.0}
    assert judge(ticket(anchors=words), exemplar(), cosine=0.4).outcome is Outcome.JOIN
    assert judge(ticket(anchors=words), exemplar(), cosine=0.4, spread={"checkout": 9}).outcome is Outcome.OPEN


def test_two_reports_that_fit_equally_well_are_both_refused():
    decision = judge(ticket(), exemplar("one"), exemplar("two"))
    assert decision.outcome is Outcome.OPEN
    assert "about equally well" in decision.reason


def test_a_report_that_holds_another_exception_takes_no_second_one_by_way_of_its_ticket():
    first, written = exemplar("first", report_id="r"), ticket(report_id="r")
    second = exemplar("second", frames=("app.py:dispatch", "stock.py:reserve"))
    joined = judge(second, written, same_kind={"r": [Match(first, 0.5)]})
    assert joined.outcome is Outcome.OPEN
    assert "already holds another exception" in {item.verdict.split(",")[0].removeprefix("its report ") for item in joined.candidates}
    assert judge(second, written, same_kind={"r": []}).outcome is Outcome.JOIN


def test_the_same_exception_raised_at_the_same_place_with_a_layer_in_between_joins():
    other_way = exemplar("two", frames=("app.py:dispatch", "retry.py:again", "cart.py:total"))
    assert judge(other_way, exemplar()).report_id == "r-one"


@pytest.mark.parametrize(
    "change",
    [
        {"exception_type": "ValueError"},
        {"frames": ("app.py:dispatch", "cart.py:discount")}, {"frames": ("app.py:dispatch", "stock.py:total")},
        {"frames": (*[f"jobs.py:step{number}" for number in range(9)], "cart.py:total")},
        {"frames": ("jobs.py:nightly", "cart.py:total")},  # the same function may be called wrongly from two places
    ],
)  # fmt: skip
def test_an_exception_of_another_type_place_or_path_does_not_join(change):
    assert judge(exemplar("two", **change), exemplar(), cosine=0.97).outcome is Outcome.OPEN


def test_an_explicit_fingerprint_is_never_joined_with_its_own_kind():
    assert judge(exemplar("two", explicit=True), exemplar(), cosine=1.0).outcome is Outcome.OPEN
    assert judge(exemplar("two"), exemplar(explicit=True), cosine=1.0).outcome is Outcome.OPEN


def test_a_report_that_a_person_put_away_takes_more_of_the_same_only():
    put_away = frozenset({"r-one"})
    assert judge(ticket(), exemplar(), quiet=put_away).outcome is Outcome.OPEN
    again = exemplar("two", frames=("app.py:dispatch", "retry.py:again", "cart.py:total"))
    assert judge(again, exemplar(), quiet=put_away).outcome is Outcome.JOIN


def test_a_measurement_is_drawn_into_nothing():
    measured = exemplar("verdict", kind="measurement", exception_type="", frames=())
    assert judge(measured, exemplar(), cosine=0.9).outcome is Outcome.OPEN
    assert judge(exemplar(), measured, cosine=0.9).outcome is Outcome.OPEN


@pytest.mark.parametrize(
    ("cosine", "other", "joins"),
    [
        (0.86, {"service": "", "anchors": {}}, True),
        (0.80, {"service": "", "anchors": {}}, False),
        (0.75, {}, True),  # the same names of the same service
        (0.75, {"service": ""}, False),
        (0.75, {"anchors": {}}, False),
        (0.70, {}, False),
        (0.86, {"occurred_at": 1_000.0 - 90_000}, False),
        (0.93, {"occurred_at": 1_000.0 - 90_000}, True),
    ],
)
def test_two_tickets_need_more_agreement_the_less_they_have_in_common(cosine, other, joins):
    assert (judge(ticket(), ticket("other", **other), cosine=cosine).outcome is Outcome.JOIN) is joins


@pytest.mark.parametrize(("kind", "cosine", "joins"), [("issue", 0.65, False), ("observation", 0.65, False), ("issue", 0.86, True)])
def test_a_ticket_and_an_issue_need_what_two_tickets_need(kind, cosine, joins):
    decision = judge(ticket(), ticket("other", kind=kind), cosine=cosine)
    assert (decision.outcome is Outcome.JOIN) is joins
    assert "≥ 0.50" not in decision.reason


@pytest.mark.parametrize(
    "text",
    [
        "Please offer an Excel export", "How do I export one month? I cannot find where to choose it.", "Chunk size should be configurable",
        "Could you add dark mode to the cart", "It would be nice to see the total in the cart", "Is there a way to share a cart?",
    ],
)  # fmt: skip
def test_a_text_that_only_asks_for_something_meets_no_exception_of_what_it_names(text):
    decision = judge(ticket(title=text), exemplar())
    assert (decision.outcome, "asks for something" in decision.reason) == (Outcome.OPEN, True)
    assert judge(exemplar(), ticket(title="Cart", body=text)).outcome is Outcome.OPEN


@pytest.mark.parametrize(
    "text",
    [
        "Please add the total again, it is missing", "How do I pay? The page says error 500", "Could you please fix the cart",
        "We would like to order but the cart doesn't load", "I cannot find my cart", "Total in the cart", "Wie kann ich bezahlen?",
    ],
)  # fmt: skip
def test_a_text_that_asks_and_tells_of_a_failure_meets_it(text):
    assert judge(ticket(title=text), exemplar()).outcome is Outcome.JOIN


def test_an_issue_joins_no_ticket_whose_report_was_put_away():
    assert judge(ticket("new", kind="issue"), ticket(), cosine=0.95, quiet=frozenset({"r-ticket"})).outcome is Outcome.OPEN
    assert judge(ticket("new"), ticket(), cosine=0.95, quiet=frozenset({"r-ticket"})).outcome is Outcome.JOIN


def test_its_own_fingerprint_is_not_its_neighbour():
    assert judge(exemplar(), exemplar(), cosine=1.0).outcome is Outcome.OPEN


def test_the_order_of_the_neighbours_does_not_matter():
    items = [exemplar(str(number), anchors={"cart": number / 10}) for number in range(1, 9)]
    decisions = {judge(ticket(), *random.Random(seed).sample(items, len(items))).report_id for seed in range(20)}
    assert len(decisions) == 1


def test_anchors_are_names_not_filler(make_signal):
    found = anchors_of(
        make_signal(
            kind="exception", service="shop", title="KeyError: 'GBP'", exception_type="KeyError", exception_value="'GBP'",
            transaction="POST /checkout", frames=[("shop/web.py", "handle"), ("shop/pricing.py", "apply_voucher")],
            body="Please help, the request failed with an error",
        )
    )  # fmt: skip
    assert found["checkout"] == found["apply_voucher"] == 1.0
    assert found["keyerror"] == 0.5
    assert {"gbp", "pric", "voucher"} <= found.keys()
    assert not {"shop", "handle", "please", "error", "request", "web"} & found.keys()


def test_the_name_of_its_own_service_is_no_anchor_in_any_form_but_its_route_is(make_signal):
    def names(**fields):
        return anchors_of(make_signal(service="payments", **{"title": "?", **fields})).keys()

    assert not names(kind="ticket", title="A payment of mine", body="All payments") & {"payment", "payments"}
    route = {"/payments"}
    assert names(kind="exception", transaction="POST /api/v1/payments/{id}") & names(kind="alert", labels={"handler": "/payments"}) == route
    assert names(kind="health_check", labels={"target": "payments.example.com/health/payments"}) == route
    assert names(kind="health_check", labels={"target": "payments.example.com/ready"}) == set()  # a host is no route
    assert names(kind="log", transaction="/payments/refund") == {"refund"}
    assert names(kind="alert", labels={"instance": "https://shop.example.com/payments"}) == route
    assert names(kind="alert", labels={"instance": "node-exporter:9100"}) == set()


def test_a_queue_and_the_job_that_is_named_after_it_share_the_whole_name(make_signal):
    job = anchors_of(make_signal(kind="exception", service="orders", transaction="order-confirmation"))
    alert = anchors_of(make_signal(kind="alert", service="orders", title="QueueBacklog", labels={"queue": "order-confirmation"}))
    assert job.keys() & alert.keys() == {"order-confirmation", "confirmation"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Hallo, ich möchte meine Lieferadresse ändern, bekomme aber eine Fehlermeldung. Bitte helfen Sie.", {"lieferadresse", "ändern"}),
        ("Bonjour, quand je veux modifier mon adresse, la page reste blanche. Merci de votre aide.", {"modifier", "adresse", "blanche"}),
        ("Hola, cuando quiero pagar mi pedido siempre aparece un error. ¿Pueden ayudarme por favor? Gracias.", {"pagar", "pedido"}),
        ("Buongiorno, quando provo a scaricare la fattura non succede nulla. Grazie", {"scaricare", "fattura", "provo"}),
        ("Olá, quando tento emitir a fatura aparece uma mensagem de erro. Obrigado", {"emitir", "fatura", "tento"}),
        ("Hallo, ik kan mijn factuur niet downloaden, er gebeurt niets. Alvast bedankt", {"factuur", "downloaden"}),
        ("Dear team, the invoice is empty. Best regards, yours sincerely", {"invoice", "empty"}),
        ("Не могу оплатить заказ", {"могу", "оплатить", "заказ"}),
    ],
)  # fmt: skip
def test_what_every_letter_of_a_language_says_is_no_name_and_words_are_whole(text, names, make_signal):
    found = anchors_of(make_signal(kind="ticket", title="?", body=text)).keys()
    assert names <= found
    assert len(found) <= len(names) + 2


@pytest.mark.parametrize("piece", ["Aa", "a_", "/a", "E", "'", '"a', "A1", "Error", "a://", "_", "Aa0", "://", "{", "aaaaA"])
def test_hostile_text_is_described_in_linear_time(make_signal, piece):
    text = piece * (16_384 // len(piece))
    signal = make_signal(
        kind="exception", title=text[:512], body=text, exception_type=text[:512], exception_value=text[:2_048], transaction=text[:512],
        labels={"check": text[:512], "path": text[:512]}, request={"url": text[:2_048]},
        frames=[{"file": text[:512], "function": text[:512], "module": text[:512]}] * 100,
    )  # fmt: skip
    started = time.perf_counter()
    exemplar = describe(signal, fingerprint(signal))
    assert time.perf_counter() - started < 0.5
    assert len(exemplar.anchors) <= 48
    assert len(str(exemplar.to_payload())) < 32_768
    decide(exemplar, Surroundings([]))
