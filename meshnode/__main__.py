"""``python -m meshnode`` is the ``meshnode`` command."""

from meshnode.cli.main import main

main()
