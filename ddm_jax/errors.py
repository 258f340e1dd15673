"""The one exception whose message is meant for the user.

Command lines print it as one sentence and exit with code 2; any other exception is a bug and keeps
its traceback.
"""


class UserError(Exception):
    """A bad config, data set, checkpoint or prompt: names the field, the value and the remedy."""
