"""What the tests share: tiny models and worlds, servers, and faults."""
