"""What a customer wants: products and how many of each."""

from shop.catalogue import price_of

MOST_PER_LINE = 20


class BadCart(ValueError):
    """The cart cannot be ordered."""


def parse(text):
    """A cart as the page sends it: "mug:2,tea:1"."""
    cart = {}
    for part in filter(None, text.split(",")):
        product, _, number = part.partition(":")
        if not number.isdigit() or not 1 <= int(number) <= MOST_PER_LINE:
            raise BadCart(f"{part!r} is not a product and a number up to {MOST_PER_LINE}")
        cart[product] = cart.get(product, 0) + int(number)
    if not cart:
        raise BadCart("the cart is empty")
    return cart


def subtotal(cart):
    """The sum of a cart in euro cents."""
    return sum(price_of(product) * number for product, number in cart.items())
