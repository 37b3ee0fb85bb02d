"""Currencies: rates against the euro, and how many decimals their smallest coin has."""

RATES = {"EUR": 1.0, "USD": 1.08, "GBP": 0.85, "JPY": 163.0, "KRW": 1460.0}
DECIMALS = {"EUR": 2, "USD": 2, "GBP": 2, "JPY": 0, "KRW": 0}


class UnknownCurrency(LookupError):
    """We do not take this currency."""


def convert(cents, currency):
    """An amount of euro cents in the smallest unit of a currency."""
    if currency not in RATES:
        raise UnknownCurrency(currency)
    return round(cents / 100 * RATES[currency] * 10 ** DECIMALS[currency])


def show(amount, currency):
    """An amount in the smallest unit, for a person to read."""
    decimals = DECIMALS[currency]
    return f"{amount / 10**decimals:.{decimals}f} {currency}"
