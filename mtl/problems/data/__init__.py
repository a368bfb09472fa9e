"""Where data sets lie, how they are fetched and verified."""
