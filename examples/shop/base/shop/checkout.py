"""Turns a cart into an order."""

import itertools

from shop.currency import show
from shop.pricing import total

_numbers = itertools.count(1)


def place_order(cart, currency, customer):
    """The order: its number and what is to be paid."""
    amount = total(cart, currency)
    return {"order": next(_numbers), "customer": customer, "amount": amount, "pay": show(amount, currency)}
