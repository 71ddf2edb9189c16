"""One file a method: from a measurement to the circuit or vectors that the method finds."""
