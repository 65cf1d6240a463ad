"""The one exception that means: the user can put this right."""


class UserError(ValueError):
    """A user's mistake, in one line: the thing, what was got, what is allowed, the way out.

    The command layer prints the line on stderr without a traceback and exits with code 2.
    """


class SharedError(UserError):
    """A mistake that the first process of a launch tells of for all of them."""


class DataWarning(UserWarning):
    """What the user should know of their data, in one line; work goes on.

    Given with `warnings.warn`; the command layer prints the line on stderr.
    """


class ImageWarning(DataWarning):
    """What is said of one image and is likely true of many; the command layer prints the first."""
