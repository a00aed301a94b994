"""How a coroutine ends that nobody wants any more."""


class Abandoned(BaseException):
    """Raised inside a coroutine that is to end; passes every `except Exception`."""
