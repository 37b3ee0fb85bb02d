"""The test cluster by hand: ``python -m tests.cluster up | down | kubectl ...``."""

import subprocess
import sys
import time

from tests.cluster.binaries import CannotBuild, bring, cache
from tests.cluster.node import Node, NodeFailed

arguments = sys.argv[1:] or ["help"]
try:
    node = Node(cache() / "node", bring())
    if arguments[0] == "up":
        started = time.monotonic()
        node.up()
        print(f"up in {time.monotonic() - started:.0f} s\nexport KUBECONFIG={node.kubeconfig}")
    elif arguments[0] == "down":
        node.down()
    elif arguments[0] == "kubectl":
        sys.exit(subprocess.run([node.programs / "kubectl", "--kubeconfig", node.kubeconfig, *arguments[1:]], check=False).returncode)
    else:
        sys.exit(__doc__)
except (CannotBuild, NodeFailed) as error:
    sys.exit(f"✗ {error}")
