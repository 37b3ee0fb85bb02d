"""Error tracking, when it is configured."""

import os
import threading
import time


def start():
    """Starts sentry-sdk when SHOP_SENTRY_DSN is set; wraps nothing otherwise."""
    dsn = os.environ.get("SHOP_SENTRY_DSN")
    if not dsn:
        return lambda application: application
    import sentry_sdk
    from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware

    sentry_sdk.init(dsn=dsn, release=os.environ.get("SHOP_RELEASE"), environment=os.environ.get("SHOP_ENVIRONMENT", "production"))
    threading.Thread(target=_flush_on, args=(float(os.environ.get("SHOP_FLUSH_SECONDS", "10")),), daemon=True).start()
    return SentryWsgiMiddleware


def _flush_on(seconds):
    """Request sessions are sent once a minute by default; a small shop wants to know sooner."""
    import sentry_sdk

    while True:
        time.sleep(seconds)
        sentry_sdk.flush(timeout=2)


def tell_who(customer):
    """Says who is being served, so that it is known how many people an error hits."""
    if customer and os.environ.get("SHOP_SENTRY_DSN"):
        import sentry_sdk

        sentry_sdk.set_user({"id": customer})
