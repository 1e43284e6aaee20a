"""A service that is looked after while people chat; see `tests.operation.run`."""
