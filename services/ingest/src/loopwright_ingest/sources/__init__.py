"""One file per source: from what it sends to signals. A new source is a copy of one of these and a route in ``api``."""
