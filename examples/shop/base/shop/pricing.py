"""What a cart costs: discounts, shipping, and rounding to coins that exist."""

from shop.cart import subtotal
from shop.currency import convert

SHIPPING = 590

# Cash totals are rounded to coins that a till has, in the smallest unit of each currency.
CASH_STEPS = {"EUR": 5, "USD": 5, "GBP": 5, "JPY": 1, "KRW": 10}


def discount(cart):
    """Ten percent off from three pieces of one product on."""
    return subtotal(cart) // 10 if max(cart.values()) >= 3 else 0


def shipping(cart):
    """What sending it costs, in euro cents."""
    return SHIPPING


def round_cash(amount, currency):
    """The amount rounded to the nearest coin."""
    step = CASH_STEPS[currency]
    return (amount + step // 2) // step * step


def total(cart, currency):
    """What the customer pays, in the smallest unit of the currency."""
    cents = subtotal(cart) - discount(cart) + shipping(cart)
    return round_cash(convert(cents, currency), currency)
