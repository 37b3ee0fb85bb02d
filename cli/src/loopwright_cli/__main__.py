"""``python -m loopwright_cli``, the same as ``loopwright``."""

from loopwright_cli.main import main

main()
