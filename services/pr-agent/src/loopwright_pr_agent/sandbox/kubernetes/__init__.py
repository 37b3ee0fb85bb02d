"""The sandbox as a Kubernetes Job: ``manifest`` builds it, ``statuses`` reads its end, ``jobs`` runs it, ``api`` is the cluster."""
