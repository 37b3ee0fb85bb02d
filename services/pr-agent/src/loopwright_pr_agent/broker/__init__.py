"""The one thing a sandbox pod may talk to: it hands a run's input in, takes its result, and asks the model for it within a budget.

``tokens`` proves who asks, ``records`` remembers each run over restarts, ``bundle`` is the input, ``runs`` decides, ``api`` is the HTTP.
"""
