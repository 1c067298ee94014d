"""The referee: whether a model, an optimiser or a schedule is better than a baseline at equal
compute, and how sure that is."""
