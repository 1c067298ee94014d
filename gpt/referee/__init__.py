"""The referee: whether a model, an optimiser or a schedule is better than a baseline at equal
compute, how sure that is, and a folder by which anyone can check it."""
