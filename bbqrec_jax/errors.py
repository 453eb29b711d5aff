"""The one exception for what a user can mend."""


class UserError(Exception):
  """Bad input, said in one clear sentence: what is wrong, where, and what to do.

  Commands print it without a traceback and exit with status 1.
  """
