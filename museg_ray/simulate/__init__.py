"""The driver without a cluster: stand-ins for every part, and a clock that does not wait."""
