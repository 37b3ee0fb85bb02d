"""Customers: seeded requests to the shop over HTTP, bounded in time and number. Prints what came of them as JSON.

python examples/shop/traffic.py --url http://127.0.0.1:8480 --seconds 20 --per-second 25 --seed 1
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import random
import time
import urllib.error
import urllib.request
from collections import Counter

CURRENCIES = {"EUR": 50, "USD": 20, "GBP": 12, "CHF": 6, "JPY": 8, "KRW": 4}
PRODUCTS = ("mug", "tea", "pot", "tin", "whisk", "tray")
CUSTOMERS = 400
REQUESTS_MAX = 20_000


def requests(rng: random.Random, number: int) -> list[tuple[str, str, str]]:
    """(method, path with query, customer) of so many requests."""
    found = []
    for _ in range(number):
        customer = f"customer-{rng.randrange(CUSTOMERS)}"
        kind = rng.random()
        if kind < 0.3:
            found.append(("GET", "/", customer))
        elif kind < 0.5:
            found.append(("GET", f"/search?q={rng.choice(('tea', 'mug', 'bam', 'pot'))}", customer))
        else:
            items = ",".join(f"{product}:{rng.randint(1, 4)}" for product in rng.sample(PRODUCTS, rng.randint(1, 3)))
            currency = rng.choices(list(CURRENCIES), list(CURRENCIES.values()))[0]
            found.append(("POST", f"/checkout?items={items}&currency={currency}", customer))
    return found


def ask(url: str, method: str, path: str, customer: str) -> str:
    """The status that came back, or why none did."""
    request = urllib.request.Request(url + path, method=method, headers={"X-Customer": customer})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            answer.read()
            return str(answer.status)
    except urllib.error.HTTPError as error:
        error.read()
        return str(error.code)
    except OSError as error:
        return type(error).__name__


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--url", default="http://127.0.0.1:8480")
    options.add_argument("--seconds", type=float, default=20.0)
    options.add_argument("--per-second", type=float, default=25.0)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    number = min(int(given.seconds * given.per_second), REQUESTS_MAX)
    counts: Counter[str] = Counter()
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = []
        for index, request in enumerate(requests(random.Random(given.seed), number)):
            time.sleep(max(0.0, started + index / given.per_second - time.monotonic()))
            waiting.append(pool.submit(ask, given.url, *request))
        counts.update(future.result() for future in waiting)
    print(json.dumps({"requests": number, "seconds": round(time.monotonic() - started, 1), "answers": dict(counts)}))


if __name__ == "__main__":
    main()
