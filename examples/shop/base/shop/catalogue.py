"""What is for sale, with prices in euro cents."""

PRODUCTS = {
    "mug": ("Enamel mug", 1250),
    "tea": ("Assam, 100 g", 790),
    "pot": ("Cast iron teapot", 6900),
    "tin": ("Tea tin", 480),
    "whisk": ("Bamboo whisk", 2100),
}


class UnknownProduct(LookupError):
    """There is no such product."""


def price_of(product):
    """The price of a product in euro cents."""
    try:
        return PRODUCTS[product][1]
    except KeyError:
        raise UnknownProduct(product) from None


def search(words):
    """The products whose names hold all the words."""
    wanted = words.lower().split()
    return [key for key, (name, _) in PRODUCTS.items() if all(word in name.lower() for word in wanted)]
