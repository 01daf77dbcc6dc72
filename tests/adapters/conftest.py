"""Django is set up before a test module imports one of its models, whichever comes first."""

from tests.adapters import django_site

__all__ = ["django_site"]
