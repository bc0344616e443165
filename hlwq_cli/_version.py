"""The version of the package, which the build and written files read from here."""

__version__ = "0.1.0"
