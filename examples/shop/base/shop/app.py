"""The web service (WSGI)."""

import json
from urllib.parse import parse_qs

from shop import cart, catalogue, checkout, currency, monitoring

BAD_REQUEST = (cart.BadCart, catalogue.UnknownProduct, currency.UnknownCurrency)


def application(environ, start_response):
    """Routes a request; what goes wrong inside is for the monitoring and the server to see."""
    query = {key: values[0] for key, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
    customer = environ.get("HTTP_X_CUSTOMER", "")
    monitoring.tell_who(customer)
    route = (environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/"))
    try:
        status, body = answer(route, query, customer)
    except BAD_REQUEST as error:
        status, body = "400 Bad Request", {"error": str(error)}
    payload = json.dumps(body).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))])
    return [payload]


def answer(route, query, customer):
    """(status, body) for a route."""
    if route == ("GET", "/"):
        return "200 OK", {"products": catalogue.PRODUCTS}
    if route == ("GET", "/search"):
        return "200 OK", {"found": catalogue.search(query.get("q", ""))}
    if route == ("POST", "/checkout"):
        order = checkout.place_order(cart.parse(query.get("items", "")), query.get("currency", "EUR"), customer)
        return "201 Created", order
    if route == ("GET", "/health"):
        return "200 OK", {"status": "ok"}
    return "404 Not Found", {"error": "there is nothing here"}
