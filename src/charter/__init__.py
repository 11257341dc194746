"""Charter: align language models to a written constitution and to human votes, and prove whether it worked."""

__version__ = "0.1.0"
