"""How a node learns which runs want to be driven."""
