"""Training: the train state and step, the loop around it, validation, and metric writers."""
