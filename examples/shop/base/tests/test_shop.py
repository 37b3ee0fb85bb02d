import io

import pytest

from shop import cart, catalogue, currency, pricing
from shop.app import application


def call(method, path, query=""):
    answered = {}
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "wsgi.input": io.BytesIO()}
    body = b"".join(application(environ, lambda status, headers: answered.update(status=status)))
    return answered["status"], body


def test_a_cart_is_read_from_what_the_page_sends():
    assert cart.parse("mug:2,tea:1,mug:1") == {"mug": 3, "tea": 1}


@pytest.mark.parametrize("text", ["", "mug", "mug:0", "mug:21", "mug:x"])
def test_a_cart_that_cannot_be_ordered_is_refused(text):
    with pytest.raises(cart.BadCart):
        cart.parse(text)


def test_three_of_a_kind_are_cheaper():
    assert pricing.discount({"mug": 3}) == 375
    assert pricing.discount({"mug": 2, "tea": 2}) == 0


def test_a_total_is_rounded_to_coins():
    assert pricing.total({"mug": 1}, "EUR") == 1840
    assert pricing.total({"tin": 1}, "USD") % 5 == 0


def test_amounts_are_shown_with_the_decimals_of_their_currency():
    assert currency.show(1840, "EUR") == "18.40 EUR"
    assert currency.show(2999, "JPY") == "2999 JPY"


def test_search_finds_by_words():
    assert catalogue.search("tea") == ["pot", "tin"]


def test_checkout_answers_with_an_order():
    status, body = call("POST", "/checkout", "items=mug:2&currency=EUR")
    assert status == "201 Created"
    assert b"30.90 EUR" in body


def test_what_cannot_be_ordered_is_a_bad_request():
    assert call("POST", "/checkout", "items=unicorn:1")[0] == "400 Bad Request"
    assert call("POST", "/checkout", "items=mug:1&currency=XYZ")[0] == "400 Bad Request"
    assert call("GET", "/nowhere")[0] == "404 Not Found"
