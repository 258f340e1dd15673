"""Lists the commands: python -m ddm_jax."""

from ddm_jax.command_help import overview, show

if __name__ == "__main__":
    show(overview())
