"""The parts that the manager is made of."""
