"""The command line: thin commands over the public names.

Exit codes: 0 done; 1 an unexpected failure, with a traceback; 2 refused, with the reason and what
to type instead; 130 interrupted.
"""

from headwater.cli.app import main

__all__ = ["main"]
