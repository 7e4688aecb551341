"""An entropy coder on an integer lattice, the second kind of model."""
