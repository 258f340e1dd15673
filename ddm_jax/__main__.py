"""Lists the commands: python -m ddm_jax."""

from ddm_jax.command_help import overview

if __name__ == "__main__":
    print(overview())
