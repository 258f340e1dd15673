"""Lists the commands: python -m ddm_jax."""

import sys

from ddm_jax.command_help import overview, show, unknown_command

if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    if words:
        print(f"error: {unknown_command(words[0])}", file=sys.stderr)
        sys.exit(2)
    show(overview())
