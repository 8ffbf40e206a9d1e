"""The typed configuration tree and its loading."""
